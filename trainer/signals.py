"""A stop asked for by SIGTERM or Ctrl-C is taken at the next safe point, not in mid-update."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from types import FrameType


class Stopped(Exception):
    """Raised at a safe point after a stop was asked for; the weights are those of a whole step."""


class StopFlag:
    """Set by the first SIGTERM or SIGINT; the second one ends the process at once.

    `poll()` is called between micro-batches of generation and evaluation, where leaving is safe.
    """

    def __init__(self) -> None:
        self.asked = ""  # name of the first signal
        self.last_words: Callable[[], str] = str  # lines for when the second one ends it all

    def install(self) -> None:
        """Take over the two signals. Worker processes must not call this."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)

    def poll(self) -> None:
        """Raise Stopped if a stop was asked for."""
        if self.asked:
            raise Stopped

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            sys.stderr.write(f"\n{self.last_words()}\n")
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.asked = signal.Signals(number).name
        sys.stderr.write(
            f"\n{self.asked}: saving at the next step boundary; once more ends at once\n"
        )
