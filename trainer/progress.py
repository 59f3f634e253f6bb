"""What a run shows while it runs: a live panel on a terminal, one plain line a step elsewhere."""

from __future__ import annotations

import itertools
import math
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from rich.console import RenderableType
    from rich.progress import Progress as Bars
    from typing_extensions import Self

    from trainer.types import StepStats

WINDOW = 10  # steps in a running mean
TREND = 24  # columns of a sparkline
UNITS = {
    "rollout": "sequences",
    "grading": "answers",
    "update": "micro-batches",
    "evaluate": "answers",
}
_BLOCKS = "▁▂▃▄▅▆▇█"
_UNKNOWN = "–"


@dataclass(frozen=True)
class Figure:
    """A key figure of a step: where it is found and how it reads."""

    label: str
    short: str  # on the plain line
    key: str  # of StepStats.metrics
    format: str
    better: int = 0  # +1 higher, -1 lower, 0 neither: the colour of a change


FIGURES = (
    Figure("accuracy", "acc", "reward/correctness", ".1%", +1),
    Figure("length deviation", "dev", "length/deviation", ".1%", -1),
    Figure("asked–used correlation", "corr", "length/correlation", ".3f", +1),
    Figure("mean tokens", "len", "length/mean", ".1f"),
    Figure("over budget", "over", "length/over_budget", ".1%"),
    Figure("reward", "reward", "reward/mean", ".3f", +1),
    Figure("KL to start", "kl", "policy/kl", ".4f"),
    Figure("entropy", "ent", "policy/entropy", ".3f"),
    Figure("s/step", "s/step", "", ".1f", -1),
)


class LiveView:
    """A context manager that shows `view` of rich, or nothing where there is no terminal."""

    def __init__(self, view: Live | Bars | None) -> None:
        self._view = view

    def __enter__(self) -> Self:
        if self._view:
            self._view.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._view:
            self._view.stop()


class Progress(LiveView):
    """The progress of a run as a context manager; it only shows, it decides nothing."""

    def __init__(
        self, total_steps: int, start_step: int, name: str, console: Console | None = None
    ) -> None:
        """`start_step` of `total_steps` are done already; `console` is for tests."""
        self.total, self.done, self.name = total_steps, start_step, name
        self._console = console or Console()
        super().__init__(Live(self, console=self._console) if on_terminal(self._console) else None)
        self._history: dict[str, list[float]] = defaultdict(list)
        self._phase, self._phase_done, self._phase_total = "starting", 0, 0
        self._skipped = 0.0
        self._phase_start = self._step_start = time.perf_counter()

    def __enter__(self) -> Progress:
        self._phase_start = self._step_start = time.perf_counter()
        return super().__enter__()

    def phase(self, name: str, done: int = 0, total: int = 0) -> None:
        """What goes on now: `done` of `total` units (see UNITS), or just the name with total 0."""
        if name != self._phase:
            self._phase_start = time.perf_counter()
        self._phase, self._phase_done, self._phase_total = name, done, total

    def step(self, stats: StepStats) -> None:
        """A step is done: show its figures."""
        now = time.perf_counter()
        self.done = stats.step
        values = {figure.label: stats.metrics.get(figure.key) for figure in FIGURES}
        values["s/step"] = now - self._step_start
        self._step_start = now
        self._skipped = stats.metrics.get("optim/skipped", 0.0)
        for label, value in values.items():
            if value is not None:
                self._history[label].append(value)
        if self._view is None:
            say(self._console, self._plain_line(values))

    def evaluation(self, row: dict[str, Any]) -> None:
        """Show an evaluation, a row of evaluations.jsonl, as a table of its budgets."""
        self._console.print(evaluation_table(row))
        self._step_start = time.perf_counter()  # its time is not a step's

    def message(self, text: str) -> None:
        """Print a line above the panel; markup in it is not interpreted."""
        say(self._console, text)

    def _eta(self) -> str:
        seconds = self._history["s/step"][-WINDOW:]
        if not seconds or self.done >= self.total:
            return ""
        return f"{duration((self.total - self.done) * sum(seconds) / len(seconds))} left"

    def _plain_line(self, values: dict[str, float | None]) -> str:
        cells = [f"step {self.done:>{len(str(self.total))}}/{self.total}"]
        for figure in FIGURES:
            value = values[figure.label]
            if value is not None:
                cells.append(f"{figure.short} {show(value, figure.format)}")
        if self._skipped:
            cells.append(f"SKIPPED {self._skipped:g}")
        return "  ".join([*cells, self._eta()]).rstrip()

    def __rich__(self) -> RenderableType:
        """The panel as it is now; Live asks for it four times a second, from its own thread."""
        lines: list[RenderableType] = [self._overall(), self._current()]
        if any(self._history.values()):
            lines += [Text(), self._figures()]
        if self._skipped:
            lines.append(Text(f"{self._skipped:g} update(s) skipped: not finite", style="bold red"))
        return Panel(Group(*lines), title=Text(self.name), title_align="left", border_style="blue")

    def _overall(self) -> RenderableType:
        row = Table.grid(padding=(0, 2))
        bar = ProgressBar(total=self.total, completed=self.done, width=30)
        row.add_row(Text(f"step {self.done}/{self.total}", style="bold"), bar, self._eta())
        return row

    def _current(self) -> RenderableType:
        row = Table.grid(padding=(0, 2))
        cells: list[RenderableType] = [Text(self._phase.replace("_", " "), style="cyan")]
        if self._phase_total:
            cells.append(ProgressBar(total=self._phase_total, completed=self._phase_done, width=20))
            unit = UNITS.get(self._phase, "")
            cells.append(Text(f"{self._phase_done}/{self._phase_total} {unit}".rstrip()))
        elapsed = time.perf_counter() - self._phase_start
        row.add_row(*cells, Text(duration(elapsed), style="dim"))
        return row

    def _figures(self) -> RenderableType:
        """Last value, running mean, its change over the window before, and the trend."""
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        table.add_column("")
        for heading in ("last", f"mean of {WINDOW}", "change"):
            table.add_column(heading, justify="right")
        table.add_column("trend")
        for figure in FIGURES:
            # A copy: this runs in the refreshing thread while the main one appends.
            values = [v for v in list(self._history[figure.label]) if math.isfinite(v)]
            if not values:
                continue
            recent, before = values[-WINDOW:], values[-2 * WINDOW : -WINDOW]
            mean = sum(recent) / len(recent)
            change = mean - sum(before) / len(before) if before else None
            table.add_row(
                figure.label,
                show(values[-1], figure.format),
                show(mean, figure.format),
                _change(change, figure),
                Text(sparkline(values), style="blue"),
            )
        return table


def evaluation_table(row: dict[str, Any]) -> Table:
    """A row of evaluations.jsonl as a table; values that are missing or not finite are a dash."""
    when = {"before": "before training", "after": "after training"}.get(row["phase"], "")
    overall = row["overall"]
    known = (
        ("accuracy", "accuracy", ".1%"),
        ("deviation", "length deviation", ".1%"),
        ("correlation", "correlation", ".3f"),
    )
    summary = ", ".join(
        f"{label} {show(overall[key], style)}" for key, label, style in known if key in overall
    )
    table = Table(
        title=Text(f"Evaluation {when or 'at step ' + str(row['step'])}", style="bold"),
        caption=Text(summary),
        title_justify="left",
        caption_justify="left",
    )
    columns = {
        "accuracy": ("accuracy", ".1%"),
        "mean_tokens": ("mean tokens", ".1f"),
        "deviation": ("deviation", ".1%"),
        "over_budget": ("over budget", ".1%"),
    }
    for heading in ("budget", *(label for label, _ in columns.values())):
        table.add_column(heading, justify="right")
    for cell in row["budgets"]:
        shown = [show(cell.get(key), style) for key, (_, style) in columns.items()]
        table.add_row(str(cell["budget"]), *shown)
    return table


def on_terminal(console: Console) -> bool:
    """Whether a live display belongs there: FORCE_COLOR makes rich call a file a terminal."""
    return console.is_interactive and console.file.isatty()


def say(console: Console, text: str) -> None:
    """Print a line as it is: nothing in it is interpreted."""
    console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)


def sparkline(values: Sequence[float], width: int = TREND) -> str:
    """Finite `values` as at most `width` block characters from their least to their greatest.

    A longer series is averaged over runs of nearly equal length. Example: [1, 2, 8] -> "▁▂█".
    """
    cells = min(width, len(values))
    edges = [len(values) * i // cells for i in range(cells + 1)] if cells else []
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, high = min(means, default=0.0), max(means, default=0.0)
    scale = (len(_BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BLOCKS[round((mean - low) * scale)] for mean in means)


def duration(seconds: float) -> str:
    """Seconds as "45 s", "3:05" (minutes) or "2:03:05" (hours)."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def show(value: float | None, style: str) -> str:
    """A figure, or a dash where it is not known or not finite."""
    return _UNKNOWN if value is None or not math.isfinite(value) else format(value, style)


def _change(change: float | None, figure: Figure) -> Text:
    if change is None:
        return Text()
    good = change * figure.better
    colour = "green" if good > 0 else "red" if good < 0 else ""
    return Text(format(change, f"+{figure.format}"), style=colour)
