"""The progress of an evaluation: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from trainer.progress import LiveView, duration, on_terminal, say

EVERY = 15.0  # seconds between lines where there is no terminal


class Display(LiveView):
    """Counts samples and estimates the time left by the tokens that are expected of them.

    A sample of the budget 3600 takes longer than one of 512, and the longest come first: counting
    samples alone would be wrong by a factor.
    """

    def __init__(
        self, name: str, samples: int, expected: int, kept: int, console: Console | None = None
    ) -> None:
        """`samples` are to be drawn, `expected` tokens in all; `kept` were there before."""
        self.name, self.samples, self.expected = name, samples, max(1, expected)
        self.done = self.expected_done = 0
        self._console = console or Console()
        self._start = self._said = time.monotonic()
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[left]}"))
        self._bar = (
            Progress(*columns, console=self._console) if on_terminal(self._console) else None
        )
        super().__init__(self._bar)
        if self._bar:
            self._task = self._bar.add_task(name, total=self.expected, left="")
        if kept:
            say(self._console, f"{name}: {kept} samples are there already, {samples} to draw")

    def sample(self, expected: int) -> None:
        """One more sample is done, of which `expected` tokens were expected."""
        self.done, self.expected_done = self.done + 1, self.expected_done + expected
        if self._bar:
            self._bar.update(self._task, completed=self.expected_done, left=self.status())
        elif self.done == self.samples or time.monotonic() - self._said > EVERY:
            self._said = time.monotonic()
            say(self._console, f"{self.name}: {self.status()}")

    def status(self) -> str:
        """How many samples of how many, and how long the rest will take."""
        elapsed = time.monotonic() - self._start
        status = f"{self.done}/{self.samples} samples"
        if self.done == self.samples:
            return f"{status} in {duration(elapsed)}"
        left = elapsed * (self.expected / max(1, self.expected_done) - 1)
        return f"{status}, {duration(left)} left"
