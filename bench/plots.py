"""The picture of one op: time of each contender, forward and backward, over the roofline floor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure  # drawn by Agg: no pyplot, no display

BLUE, LIGHT, GREY, LINE = "#0072B2", "#8CBFDE", "#767676", "#D55E00"


def plot_op(rows: list[dict[str, Any]], out: Path) -> None:
    """Draw the rows of one op to the PNG `out`: a panel a shape and dtype."""
    measured = [r for r in rows if r["ms_median"]]
    cases = list(dict.fromkeys((r["shape"], r["dtype"], r["machine"]) for r in measured))
    figure = Figure(figsize=(7.5, 0.6 + 2.2 * len(cases)), layout="constrained")
    panels = figure.subplots(len(cases), 1, squeeze=False)[:, 0]
    for panel, case in zip(panels, cases, strict=True):
        mine = [r for r in measured if (r["shape"], r["dtype"], r["machine"]) == case]
        names = list(dict.fromkeys(r["contender"] for r in mine))
        times = {(r["contender"], r["pass"]): float(r["ms_median"]) for r in mine}
        forward = [times[name, "fwd"] for name in names]
        backward = [times.get((name, "bwd"), 0.0) for name in names]
        panel.barh(names, forward, color=BLUE, label="forward")
        panel.barh(names, backward, left=forward, color=LIGHT, label="backward")
        for row, (a, b) in enumerate(zip(forward, backward, strict=True)):
            panel.annotate(f" {a + b:.3g}", (a + b, row), va="center", fontsize=8, color=GREY)
        panel.axvline(float(mine[-1]["floor_ms"]), color=LINE, lw=1, label="roofline floor")
        panel.invert_yaxis()
        panel.margins(x=0.12)
        panel.set_title(f"{case[0]}, {case[1]} · {case[2]}", fontsize=9, loc="left")
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel("milliseconds, median")
    panels[0].legend(fontsize=8, frameon=False, loc="lower right")
    figure.suptitle(rows[0]["op"])
    figure.savefig(out, dpi=130, format="png")
