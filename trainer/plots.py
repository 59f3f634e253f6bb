"""The pictures of a run: how well lengths and accuracy follow the budget, and how training went."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure  # drawn by Agg: no pyplot, so no display and no global state
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator, NullLocator, PercentFormatter, ScalarFormatter

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

DPI = 150
GREY, BLUE, ORANGE, GREEN = "#767676", "#0072B2", "#D55E00", "#009E73"  # Okabe and Ito's palette
STYLE = {"before": (GREY, "s"), "after": (BLUE, "o"), "during": (ORANGE, "D")}
LOG_RANGE = 16  # tokens that span more than this factor get a logarithmic axis
NEAR = 24  # points (1/72 inch) within which budgets share a label
LINE = 13  # points between the names of lines that end close together
SMOOTH = 9  # steps in a running mean, centred
HALO = (withStroke(linewidth=3, foreground="white"),)
REWARD_TERMS = {
    "reward/mean": ("total", BLUE),
    "reward/correctness": ("correctness", GREEN),
    "reward/length": ("length", ORANGE),
}
PANELS = {  # title: {metric: (name of its line, colour)}
    "Length deviation": {"length/deviation": ("", BLUE)},
    "Length correlation": {"length/correlation": ("", BLUE)},
    "Reward terms": REWARD_TERMS,
    "Accuracy": {"reward/correctness": ("", BLUE)},
    "KL to the start": {"policy/kl": ("", BLUE)},
    "Entropy": {"policy/entropy": ("", BLUE)},
}
IN_PERCENT = ("Length deviation", "Accuracy")

EndLabel = tuple[float, float, str, str]  # x and y of a line's right end, its name, its colour


def plot_evaluation(rows: Sequence[dict[str, Any]], out: Path) -> None:
    """Draw requested against used tokens, and accuracy against used tokens, to the PNG `out`.

    `rows` are those of evaluations.jsonl. Shown are the last one "before" and the last one of the
    other phases, so a run that is not over yet can be drawn as well. Raises ValueError when there
    is no row, OSError.
    """
    if not rows:
        raise ValueError("no evaluation to plot")
    latest = {row["phase"] == "before": row for row in rows}
    shown = [latest[is_before] for is_before in (True, False) if is_before in latest]
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    _requested_against_used(left, shown)
    _accuracy_against_tokens(right, shown)
    figure.savefig(out, dpi=DPI, format="png")


def plot_training(metrics: Sequence[dict[str, Any]], out: Path) -> None:
    """Draw the rows of metrics.jsonl over steps to the PNG `out`.

    Steps are pale, their running mean is bold. A metric that was not recorded leaves its panel
    empty. Raises OSError.
    """
    figure = Figure(figsize=(11, 5.6), layout="constrained")
    panels = figure.subplots(2, 3, sharex=True)
    steps = np.array([row["step"] for row in metrics], dtype=float)
    for axes, (title, lines) in zip(panels.flat, PANELS.items(), strict=True):
        _title(axes, title)
        ends: list[EndLabel] = []
        for key, (name, colour) in lines.items():
            values = np.array([row["metrics"].get(key) for row in metrics], dtype=float)
            known = np.isfinite(values)
            if known.any():
                end = _series(axes, steps[known], values[known], colour)
                ends.append((*end, name, colour))
        if not ends:
            _note(axes, "not recorded")
        if len(lines) > 1:  # else the title names the line
            _end_labels(axes, ends)
        if title in IN_PERCENT:
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
    for axes in panels[1]:
        axes.set_xlabel("step")
    figure.savefig(out, dpi=DPI, format="png")


def _requested_against_used(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    """Median, middle 50% and middle 80% of the tokens used for each budget."""
    _title(axes, "Used against requested tokens")
    rows = [row for row in rows if row["used"]]
    if not rows:
        _note(axes, "no samples")
        return
    budgets = sorted({asked for row in rows for asked, _, _ in row["used"]})
    log = budgets[-1] > LOG_RANGE * budgets[0]
    if log:
        axes.set_yscale("log", base=2)
        _log_x_axis(axes)
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_xticks(budgets)
    diagonal = [budgets[0] / 1.05 if log else 0, budgets[-1] * 1.05]
    axes.plot(diagonal, diagonal, color="black", lw=1, ls=(0, (4, 3)))
    ends: list[EndLabel] = []
    for row in rows:
        colour, marker = STYLE[row["phase"]]
        asked = sorted({asked for asked, _, _ in row["used"]})
        used = [[u for a, u, _ in row["used"] if a == budget] for budget in asked]
        shares = (0.1, 0.25, 0.5, 0.75, 0.9)
        low, lower, median, upper, high = np.array([np.quantile(u, shares) for u in used]).T
        axes.fill_between(asked, low, high, color=colour, alpha=0.15, lw=0)
        axes.vlines(asked, low, high, color=colour, lw=1)
        axes.vlines(asked, lower, upper, color=colour, lw=4, alpha=0.7)
        axes.plot(asked, median, color=colour, marker=marker, ms=6, mec="white", lw=1.5)
        ends.append((asked[-1], median[-1], _name(row), colour))
    axes.set_xlabel("tokens requested")
    axes.set_ylabel("tokens used")
    legend = "dashed: used = requested\nbars: middle 50% and 80% of samples"
    axes.text(0.02, 0.97, legend, transform=axes.transAxes, va="top", fontsize=8.5, color="#555555")
    _end_labels(axes, ends)


def _accuracy_against_tokens(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    """Accuracy over mean tokens used, a marker for each budget."""
    _title(axes, "Accuracy against used tokens, by budget")
    axes.set_xlabel("mean tokens used")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    lines = []
    for row in rows:
        cells = sorted((c["budget"], c["mean_tokens"], c["accuracy"]) for c in row["budgets"])
        points = np.array(cells, dtype=float).reshape(-1, 3)
        points = points[np.isfinite(points).all(1)]
        if len(points):
            lines.append((row, points))
    if not lines:
        _note(axes, "no samples")
        return
    tokens = np.concatenate([points[:, 1] for _, points in lines])
    if tokens.max() > LOG_RANGE * tokens.min() > 0:
        _log_x_axis(axes)
    for row, points in lines:
        colour, marker = STYLE[row["phase"]]
        axes.plot(points[:, 1], points[:, 2], color=colour, marker=marker, ms=7, mec="white")
    axes.margins(0.12, 0.18)
    axes.figure.draw_without_rendering()  # settles the limits: which labels collide depends on them
    for row, points in lines:
        _budget_labels(axes, points, STYLE[row["phase"]][0], below=row["phase"] == "before")
    rightmost = [(row, points[points[:, 1].argmax()]) for row, points in lines]
    _end_labels(axes, [(x, y, _name(r), STYLE[r["phase"]][0]) for r, (_, x, y) in rightmost])


def _budget_labels(axes: Axes, points: np.ndarray, colour: str, below: bool) -> None:
    """Name the budget (column 0) of each point (columns 1, 2); a cluster shares one label."""
    pixels = axes.transData.transform(points[:, 1:]) * 72 / axes.figure.dpi
    distance = np.hypot(*(pixels[:, None] - pixels[None]).transpose(2, 0, 1))
    cluster = np.arange(len(points))
    for i, j in np.argwhere(distance < NEAR):  # single linkage
        cluster[cluster == cluster[i]] = cluster[j]
    for label in np.unique(cluster):
        members = np.flatnonzero(cluster == label)
        outer = members[np.argmin(pixels[members, 1]) if below else np.argmax(pixels[members, 1])]
        # Accuracy rises to the right, so the line leaves room at the upper left and lower right.
        axes.annotate(
            _budget_ranges(points[:, 0], members),
            points[outer, 1:],
            xytext=(3, -7) if below else (-3, 5),
            textcoords="offset points",
            ha="left" if below else "right",
            va="top" if below else "bottom",
            fontsize=9,
            color=colour,
            path_effects=HALO,
        )


def _budget_ranges(budgets: np.ndarray, members: np.ndarray) -> str:
    """The member budgets, neighbours as a range: members 0, 2, 3 of 8 16 32 64 are "8, 32–64"."""
    runs = np.split(members, np.flatnonzero(np.diff(members) > 1) + 1)
    return ", ".join("–".join(f"{budgets[i]:g}" for i in sorted({run[0], run[-1]})) for run in runs)


def _series(axes: Axes, steps: np.ndarray, values: np.ndarray, colour: str) -> tuple[float, float]:
    """Draw a metric and its centred running mean; returns where the mean ends."""
    index = np.arange(len(values))
    half = np.minimum(
        np.minimum(index, index[::-1]), SMOOTH // 2
    )  # shorter, yet centred, at the ends
    sums = np.cumsum(np.concatenate([[0.0], values]))
    mean = (sums[index + half + 1] - sums[index - half]) / (2 * half + 1)
    axes.plot(steps, values, color=colour, lw=0.8, alpha=0.4)
    axes.plot(steps, mean, color=colour, lw=2, marker="o" if len(values) == 1 else None)
    return steps[-1], mean[-1]


def _end_labels(axes: Axes, ends: Sequence[EndLabel]) -> None:
    """Name lines at their right ends, moved apart where those are close in both directions."""
    axes.figure.draw_without_rendering()
    floor, last_x = -np.inf, -np.inf
    for x, y, name, colour in sorted(ends, key=lambda end: end[1]):
        at_x, at_y = axes.transData.transform((x, y)) * 72 / axes.figure.dpi
        place = max(at_y, floor) if abs(at_x - last_x) < 4 * LINE else at_y
        floor, last_x = place + LINE, at_x
        axes.annotate(
            name,
            (x, y),
            xytext=(9, place - at_y),
            textcoords="offset points",
            va="center",
            color=colour,
            fontweight="bold",
            path_effects=HALO,
        )


def _log_x_axis(axes: Axes) -> None:
    """Powers of two as plain numbers."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_locator(NullLocator())


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="left", fontweight="bold", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, lw=0.6)


def _note(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=GREY)


def _name(row: dict[str, Any]) -> str:
    return f"step {row['step']}" if row["phase"] == "during" else row["phase"]
