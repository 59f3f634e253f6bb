"""The plots of docs/results.md: accuracy against tokens used, and used against requested tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure  # drawn by Agg: no pyplot, so no display and no global state
from matplotlib.ticker import NullLocator, PercentFormatter, ScalarFormatter

from trainer.charts import BLUE, GREEN, GREY, ORANGE, PALETTE
from trainer.results.claims import Rows

DPI = 110
STYLES = {
    "base": (GREY, "*"),
    "base_prompted": (GREY, "s"),
    "truncate": ("#CC79A7", "v"),
    "s1": (ORANGE, "D"),
    "l1_exact": (BLUE, "o"),
    "l1_max": (GREEN, "^"),
}


@dataclass(frozen=True)
class Line:
    """One method on one data set. Without a label it is another training seed, drawn faint."""

    label: str | None
    colour: str
    marker: str
    rows: Rows
    dashed: bool = False


def plot_methods(seeds: Sequence[Mapping[str, Rows]], names: Mapping[str, str], out: Path) -> None:
    """Every method to the PNG `out`; `seeds`: rows by method, by training seed. Raises OSError."""
    lines = [
        Line(None, *STYLES[name], methods[name])
        for methods in seeds[1:]
        for name in names
        if methods[name] != seeds[0][name]
    ]
    lines += [
        Line(title.strip("*"), *STYLES[name], seeds[0][name]) for name, title in names.items()
    ]
    _plot(lines, out)


def plot_outside(methods: Mapping[str, Rows], out: Path) -> None:
    """L1-Exact and the prompted base on each set, in distribution too. Raises OSError."""
    sets = [name.partition(":")[2] for name in methods if name.startswith("l1_exact:")]
    lines = []
    for colour, marker, data in zip(PALETTE, "oD^v", ["", *sets], strict=False):
        title = data or "embedded"
        base = methods[f"base:{data}" if data else "base_prompted"]
        exact = methods[f"l1_exact:{data}" if data else "l1_exact"]
        lines.append(Line(f"L1-Exact, {title}", colour, marker, exact))
        lines.append(Line(f"base model, {title}", colour, marker, base, dashed=True))
    _plot(lines, out)


def _plot(lines: Sequence[Line], out: Path) -> None:
    """Accuracy with its interval left, the diagonal right; both axes of tokens logarithmic."""
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    budgets = max(([row["budget"] for row in line.rows] for line in lines), key=len)
    for line in lines:
        used = [row["mean_tokens"] for row in line.rows]
        accuracy = [row["pass1"] for row in line.rows]
        style = {"color": line.colour, "marker": line.marker, "mec": "white", "ms": 8, "lw": 1.5}
        style |= {"ls": "--"} if line.dashed else {}
        if line.label is None:
            left.plot(used, accuracy, **(style | {"ms": 4, "lw": 0.7, "alpha": 0.5}))
            continue
        low = [row["pass1"] - row["pass1_low"] for row in line.rows]
        high = [row["pass1_high"] - row["pass1"] for row in line.rows]
        left.errorbar(used, accuracy, yerr=[low, high], capsize=2, label=line.label, **style)
        if line.rows[0]["budget"]:
            right.plot([row["budget"] for row in line.rows], used, **style)
    ends = [budgets[0] / 1.1, budgets[-1] * 1.1]
    right.plot(ends, ends, color="black", lw=1, ls=(0, (4, 3)))
    left.set_title("Accuracy against used tokens, 95% intervals", loc="left", fontsize=11)
    right.set_title("Used against requested tokens, means", loc="left", fontsize=11)
    left.set_xlabel("mean tokens used")
    right.set_xlabel("tokens requested")
    left.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(budgets)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    right.set_yscale("log", base=2)
    right.yaxis.set_major_formatter(ScalarFormatter())
    right.yaxis.set_minor_locator(NullLocator())
    right.set_yticks(budgets)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncol=3, fontsize=9, frameon=False)
    figure.savefig(out, dpi=DPI, format="png")
