"""Two panels of docs/results.md: accuracy against tokens, and used against requested tokens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure  # drawn by Agg: no pyplot, so no display and no global state
from matplotlib.ticker import NullLocator, PercentFormatter, ScalarFormatter

from trainer.charts import BLUE, GREEN, GREY, ORANGE
from trainer.plots import DPI
from trainer.results.claims import Rows

STYLES = {
    "base": (GREY, "*"),
    "base_prompted": (GREY, "s"),
    "truncate": ("#CC79A7", "v"),
    "s1": (ORANGE, "D"),
    "l1_exact": (BLUE, "o"),
    "l1_max": (GREEN, "^"),
}


def plot_results(methods: Mapping[str, Rows], names: Mapping[str, str], out: Path) -> None:
    """Draw every method to the PNG `out`: intervals left, the diagonal right. Raises OSError."""
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, rows in methods.items():
        colour, marker = STYLES[name]
        used = [row["mean_tokens"] for row in rows]
        low = [row["pass1"] - row["pass1_low"] for row in rows]
        high = [row["pass1_high"] - row["pass1"] for row in rows]
        style = {"color": colour, "marker": marker, "mec": "white", "ms": 8, "lw": 1.5}
        label = names[name].strip("*")
        accuracy = [row["pass1"] for row in rows]
        left.errorbar(used, accuracy, yerr=[low, high], capsize=2, label=label, **style)
        if rows[0]["budget"]:
            right.plot([row["budget"] for row in rows], used, **style)
    budgets = [row["budget"] for row in methods["l1_exact"]]
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
