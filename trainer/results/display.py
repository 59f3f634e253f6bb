"""What `make results` shows while it runs: each stage that runs now with its last line."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.text import Text

from trainer.progress import LiveView, duration, on_terminal, say

REFRESH = 1.0  # seconds between looks at the logs
EVERY = 30.0  # seconds between lines where there is no terminal
TAIL = 4096  # bytes of a log that hold its last line


class Display(LiveView):
    """A context manager: a live view on a terminal, lines now and then elsewhere."""

    def __init__(self, console: Console | None = None) -> None:
        """`console` is for tests."""
        self._console = console or Console()
        self._live = Live(console=self._console) if on_terminal(self._console) else None
        super().__init__(self._live)
        self._start = time.monotonic()
        self._said = -EVERY

    def show(self, logs: Sequence[Path], done: int, total: int) -> None:
        """`done` of `total` stages are complete, and `logs` are those of the ones that run."""
        passed = time.monotonic() - self._start
        lines = [f"{done} of {total} stages done, {duration(passed)}"]
        lines += [f"{log.with_suffix('')}: {last_line(log)}" for log in logs]
        if self._live:
            self._live.update(Text("\n".join(lines), no_wrap=True, overflow="ellipsis"))
        elif passed - self._said >= EVERY:
            self._said = passed
            say(self._console, "\n".join(lines))


def last_line(log: Path) -> str:
    """The last line of a log that says something, or "" where there is none."""
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
        text = file.read().decode(errors="replace")
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
