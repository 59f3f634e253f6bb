"""The display of a run: a panel on a terminal, plain lines in a file."""

from __future__ import annotations

import io
import math

import pytest
from rich.console import Console

from trainer import progress
from trainer.progress import Progress, duration, sparkline
from trainer.types import StepStats

ROW = {
    "step": 4,
    "phase": "before",
    "overall": {"accuracy": 0.3, "correlation": None},
    "budgets": [
        {"budget": 8, "accuracy": 0.25, "mean_tokens": 25.2, "deviation": math.nan},
        {"budget": 96, "accuracy": 0.5, "mean_tokens": 30.0, "deviation": 0.7, "over_budget": 0.0},
    ],
}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    return now


def stats(step: int, **metrics: float) -> StepStats:
    return StepStats(step, {"reward/correctness": 0.25, "length/deviation": 0.5, **metrics})


def test_a_file_gets_one_plain_line_a_step(clock):
    stream = io.StringIO()
    with Progress(20, 10, "run", Console(file=stream, width=40)) as shown:
        for step in (11, 12):
            shown.phase("rollout", 3, 12)
            clock[0] += 30.0
            shown.step(stats(step, **{"optim/skipped": step - 11.0, "policy/kl": math.nan}))
    assert stream.getvalue().splitlines() == [
        "step 11/20  acc 25.0%  dev 50.0%  kl –  s/step 30.0  4:30 left",
        "step 12/20  acc 25.0%  dev 50.0%  kl –  s/step 30.0  SKIPPED 1  4:00 left",
    ]


def test_forced_colour_does_not_put_a_panel_into_a_file():
    stream = io.StringIO()
    with Progress(2, 0, "run", Console(file=stream, force_terminal=True)) as shown:
        shown.step(stats(1))
    assert len(stream.getvalue().splitlines()) == 1


def test_a_terminal_gets_a_panel(clock):
    stream = Terminal()
    console = Console(file=stream, width=100, force_terminal=True, force_interactive=True)
    with Progress(20, 0, "my [bold]run", console) as shown:
        for step in range(1, 21):
            clock[0] += 2.0
            shown.step(stats(step, **{"length/correlation": step / 20, "optim/skipped": 1.0}))
            shown.phase("rollout", 120, 512)
            if step == 15:
                with console.capture() as middle:
                    console.print(shown.__rich__())
        shown.message("a [red]message")
    assert "a [red]message" in stream.getvalue()
    for part in (
        "my [bold]run", "step 15/20", "10 s left", "rollout", "120/512 sequences",
        "1 update(s) skipped", "0.750", "+0.375", sparkline([s / 20 for s in range(1, 16)]),
    ):  # fmt: skip
        assert part in middle.get()


def test_evaluation_table():
    stream = io.StringIO()
    Progress(20, 0, "run", Console(file=stream, width=100)).evaluation(ROW)
    text = stream.getvalue()
    assert "Evaluation before training" in text and "accuracy 30.0%, correlation –" in text
    rows = [line.split("│")[1:6] for line in text.splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["8", "25.0%", "25.2", "–", "–"],
        ["96", "50.0%", "30.0", "70.0%", "0.0%"],
    ]


def test_evaluation_is_not_counted_as_a_step(clock):
    stream = io.StringIO()
    shown = Progress(3, 0, "run", Console(file=stream, width=100))
    clock[0] += 500.0
    shown.evaluation(ROW)
    clock[0] += 2.0
    shown.step(stats(1))
    assert "s/step 2.0  4 s left" in stream.getvalue()


@pytest.mark.parametrize(
    ("values", "line"),
    [([], ""), ([3.0], "▁"), ([2.0, 2.0], "▁▁"), ([1, 2, 8], "▁▂█"), (list(range(800)), None)],
)
def test_sparkline(values, line):
    drawn = sparkline(values, 8)
    assert drawn == ("▁▂▃▄▅▆▇█" if line is None else line)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1:00"), (45, "45 s"), (185, "3:05"), (7385, "2:03:05")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text
