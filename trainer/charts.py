"""What a run's plots and the report draw, each figure once: axes in, no file and no folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator, NullLocator, PercentFormatter, ScalarFormatter

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes

GREY, BLUE, ORANGE, GREEN = "#767676", "#0072B2", "#D55E00", "#009E73"  # Okabe and Ito's palette
PALETTE = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # grey: "before"
MARKERS = "oD^vp>"  # not as many as colours: pairs repeat only after 42 lines
NOTE = "#555555"
LOG_RANGE = 16  # tokens that span more than this factor get a logarithmic axis
NEAR = 24  # points (1/72 inch) within which budgets share a label
LINE = 13  # points between the names of lines that end close together
SMOOTH = 9  # steps in a running mean, centred
MOST_DIRECT, LONGEST_DIRECT = 5, 14  # more lines or longer names: a legend below the axes
MOST_WITH_BUDGETS = 3  # more lines of accuracy: no room to name every budget
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


@dataclass(frozen=True)
class Curve:
    """A method, or a phase of a training run, as one line.

    `cells` holds a row for each budget: "budget" (tokens; None where none was asked for),
    "mean_tokens", "accuracy", and where they are known "low" and "high", the interval of the
    accuracy. `used` is (tokens asked, tokens used) of each sample with a budget.

    Example: Curve("after", BLUE, "o", [{"budget": 32, "mean_tokens": 31.5, "accuracy": 0.58}],
    [(32, 30), (32, 33)])
    """

    name: str
    colour: str
    marker: str
    cells: Sequence[Mapping[str, Any]]
    used: Sequence[tuple[int, int]]


def draw_requested_against_used(axes: Axes, curves: Sequence[Curve]) -> None:
    """Median, middle 50% and middle 80% of the tokens used for each budget, and the diagonal."""
    _title(axes, "Used against requested tokens")
    curves = [curve for curve in curves if curve.used]
    if not curves:
        _note(axes, "no samples")
        return
    budgets = sorted({asked for curve in curves for asked, _ in curve.used})
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
    for curve in curves:
        colour = curve.colour
        asked = sorted({asked for asked, _ in curve.used})
        used = [[u for a, u in curve.used if a == budget] for budget in asked]
        shares = (0.1, 0.25, 0.5, 0.75, 0.9)
        low, lower, median, upper, high = np.array([np.quantile(u, shares) for u in used]).T
        axes.fill_between(asked, low, high, color=colour, alpha=0.15, lw=0)
        axes.vlines(asked, low, high, color=colour, lw=1)
        axes.vlines(asked, lower, upper, color=colour, lw=4, alpha=0.7)
        look = {"color": colour, "marker": curve.marker, "label": curve.name}
        axes.plot(asked, median, ms=6, mec="white", lw=1.5, **look)
        ends.append((asked[-1], median[-1], curve.name, colour))
    axes.set_xlabel("tokens requested")
    axes.set_ylabel("tokens used")
    legend = "dashed: used = requested\nbars: middle 50% and 80% of samples"
    axes.text(0.02, 0.97, legend, transform=axes.transAxes, va="top", fontsize=8.5, color=NOTE)
    _name_lines(axes, ends)


def draw_accuracy(axes: Axes, curves: Sequence[Curve], log: bool | None = None) -> None:
    """Accuracy over mean tokens used, a marker for each budget, its interval where it is known.

    `log` decides the axis of tokens; None leaves it to how far they span.
    """
    _title(axes, "Accuracy against used tokens, by budget")
    axes.set_xlabel("mean tokens used")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    lines = [(curve, points) for curve in curves if len(points := _points(curve))]
    if not lines:
        _note(axes, "no samples")
        return
    tokens = np.concatenate([points[:, 1] for _, points in lines])
    spread = tokens.max() > LOG_RANGE * tokens.min() > 0
    if spread if log is None else log and tokens.min() > 0:
        _log_x_axis(axes)
        if tokens.min() == tokens.max():  # matplotlib's own limits of one point would be that point
            axes.set_xlim(tokens[0] / 2, tokens[0] * 2)
    for curve, points in lines:
        look = {"color": curve.colour, "marker": curve.marker, "label": curve.name}
        axes.vlines(points[:, 1], points[:, 3], points[:, 4], color=curve.colour, lw=1.5, alpha=0.6)
        axes.plot(points[:, 1], points[:, 2], ms=7, mec="white", **look)
    axes.margins(0.12, 0.18)
    axes.figure.draw_without_rendering()  # settles the limits: which labels collide depends on them
    if len(lines) <= MOST_WITH_BUDGETS:
        for curve, points in lines:
            asked = points[np.isfinite(points[:, 0])]
            _budget_labels(axes, asked, curve.colour, below=curve.colour == GREY)
    rightmost = [(curve, points[points[:, 1].argmax()]) for curve, points in lines]
    _name_lines(axes, [(at[1], at[2], curve.name, curve.colour) for curve, at in rightmost])


def draw_by_budget(
    axes: Axes, title: str, lines: Sequence[tuple[str, str, str, Mapping[int, float]]]
) -> None:
    """A figure over the tokens requested: `lines` of (name, colour, marker, {budget: value})."""
    _title(axes, title)
    axes.set_xlabel("tokens requested")
    lines = [line for line in lines if line[3]]
    if not lines:
        _note(axes, "not recorded")
        return
    budgets = sorted({budget for *_, values in lines for budget in values})
    if budgets[-1] > LOG_RANGE * budgets[0]:
        _log_x_axis(axes)
        axes.set_xticks(budgets)
    ends = []
    for name, colour, marker, values in lines:
        asked = sorted(values)
        height = [values[budget] for budget in asked]
        axes.plot(asked, height, color=colour, marker=marker, ms=6, mec="white", label=name)
        ends.append((asked[-1], height[-1], name, colour))
    axes.margins(0.08, 0.12)
    axes.set_ylim(bottom=min(0, *axes.get_ylim()))
    _name_lines(axes, ends)


def draw_over_steps(axes: Axes, metrics: Sequence[Mapping[str, Any]], title: str) -> None:
    """The panel `title` of PANELS from the rows of metrics.jsonl.

    Steps are pale, their running mean is bold. A metric that was not recorded is left out.
    """
    _title(axes, title)
    steps = np.array([row["step"] for row in metrics], dtype=float)
    lines = PANELS[title]
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
        _name_lines(axes, ends)
    if title in IN_PERCENT:
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))


def _points(curve: Curve) -> np.ndarray:
    """[budget, tokens, accuracy, low, high] a cell by budget; NaN: no budget, or no interval."""
    names = ("budget", "mean_tokens", "accuracy", "low", "high")
    table = np.array([[cell.get(name) for name in names] for cell in curve.cells], dtype=float)
    table = table.reshape(-1, len(names))
    table = table[np.isfinite(table[:, 1:3]).all(1)]
    return table[np.lexsort((table[:, 1], table[:, 0]))]


def _budget_labels(axes: Axes, points: np.ndarray, colour: str, below: bool) -> None:
    """Name the budget (column 0) of each point (columns 1, 2); a cluster shares one label."""
    places = points[:, 1:3]
    pixels = axes.transData.transform(places) * 72 / axes.figure.dpi
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
            places[outer],
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


def _name_lines(axes: Axes, ends: Sequence[EndLabel]) -> None:
    """Name lines at their right ends, moved apart where those are close in both directions."""
    if len(ends) > MOST_DIRECT or any(len(name) > LONGEST_DIRECT for *_, name, _ in ends):
        axes.figure.legend(loc="outside lower left", frameon=False, fontsize=9)
        return
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
