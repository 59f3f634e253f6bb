"""The pictures of a run: how well lengths and accuracy follow the budget, and how training went."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure  # drawn by Agg: no pyplot, so no display and no global state

from trainer.charts import (
    BLUE,
    GREY,
    ORANGE,
    PANELS,
    Curve,
    draw_accuracy,
    draw_over_steps,
    draw_requested_against_used,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

DPI = 150
STYLE = {"before": (GREY, "s"), "after": (BLUE, "o"), "during": (ORANGE, "D")}


def plot_evaluation(rows: Sequence[dict[str, Any]], out: Path) -> None:
    """Draw requested against used tokens, and accuracy against used tokens, to the PNG `out`.

    `rows` are those of evaluations.jsonl. Shown are the last one "before" and the last one of the
    other phases, so a run that is not over yet can be drawn as well. Raises ValueError when there
    is no row, OSError.
    """
    if not rows:
        raise ValueError("no evaluation to plot")
    curves = [_curve(row) for row in first_and_last(rows)]
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_requested_against_used(left, curves)
    draw_accuracy(right, curves)
    figure.savefig(out, dpi=DPI, format="png")


def plot_training(metrics: Sequence[dict[str, Any]], out: Path) -> None:
    """Draw the rows of metrics.jsonl over steps to the PNG `out`.

    A metric that was not recorded leaves its panel empty. Raises OSError.
    """
    figure = Figure(figsize=(11, 5.6), layout="constrained")
    panels = figure.subplots(2, 3, sharex=True)
    for axes, title in zip(panels.flat, PANELS, strict=True):
        draw_over_steps(axes, metrics, title)
    for axes in panels[1]:
        axes.set_xlabel("step")
    figure.savefig(out, dpi=DPI, format="png")


def first_and_last(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of the rows of evaluations.jsonl, the last one "before" and the last one of another phase."""
    latest = {row["phase"] == "before": row for row in rows}
    return [latest[is_before] for is_before in (True, False) if is_before in latest]


def phase_name(row: dict[str, Any]) -> str:
    """What to call a row of evaluations.jsonl: "before", "after", or "step 20"."""
    return f"step {row['step']}" if row["phase"] == "during" else row["phase"]


def _curve(row: dict[str, Any]) -> Curve:
    used = [(asked, used) for asked, used, _ in row["used"]]
    return Curve(phase_name(row), *STYLE[row["phase"]], row["budgets"], used)
