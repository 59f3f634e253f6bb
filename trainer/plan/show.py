"""A plan as tables, lines and one picture: where the seconds and the memory go."""

from __future__ import annotations

from pathlib import Path
from statistics import mean

from matplotlib.figure import Figure
from rich.table import Table

from trainer.charts import GREY, PALETTE
from trainer.memory import GIB
from trainer.plan.plan import HOUR, Plan
from trainer.plan.walk import PARTS, PASS
from trainer.plots import DPI

TERA, GIGA = 1e12, 1e9


def tables(plan: Plan) -> list[Table]:
    """Seconds by phase, memory by part."""
    memory, asked = plan.memory, plan.memory.asked
    title = f"A step on {asked.name} ({asked.hardware.gpus} x {asked.hardware.chip or 'CPU'})"
    seconds = Table(title=title, title_justify="left", box=None)
    heads = ("phase", "seconds", "share", "floor", "TFLOP a GPU", "GB a GPU", "waits for")
    for number, head in enumerate(heads):
        seconds.add_column(head, justify="right" if number else "left")
    for name, costs in plan.phases.items():
        worst = max(costs, key=lambda cost: cost.seconds)
        seconds.add_row(
            name,
            f"{worst.seconds:.2f}",
            f"{worst.seconds / plan.step_seconds:.0%}",
            f"{max(cost.floor for cost in costs):.2f}",
            f"{mean(cost.flops for cost in costs) / TERA:,.1f}",
            f"{mean(cost.bytes for cost in costs) / GIGA:,.0f}",
            bound(plan, name),
        )
    seconds.add_row("step", f"{plan.step_seconds:.1f}", "", f"{plan.step_floor:.1f}")
    parts = Table(title="Memory of one GPU, GiB", title_justify="left", box=None)
    parts.add_column("part")
    for phase in memory.walk.memory:
        parts.add_column(phase, justify="right")
    for part in (*PARTS, *PASS):
        sizes = [found[part] / GIB for found in memory.walk.memory.values()]
        parts.add_row(part, *(f"{size:.2f}" if size else "" for size in sizes))
    totals = (f"{memory.total(phase) / GIB:.2f}" for phase in memory.walk.memory)
    parts.add_row("total", *totals)
    return [seconds, parts]


def bound(plan: Plan, phase: str) -> str:
    """What a phase mostly waits for on its slowest GPU: the host, arithmetic, memory or links."""
    asked, cost = plan.memory.asked, max(plan.phases[phase], key=lambda cost: cost.seconds)
    if phase == "exchange":
        return "links" if cost.seconds else ""
    hardware, peak = asked.hardware, asked.peak
    rate = peak.bfloat16 if asked.config.model.dtype == "bfloat16" else peak.full
    arithmetic = cost.flops / (rate * hardware.product)
    traffic = cost.bytes / (peak.memory * hardware.memory)
    # Ops overlap neither: where both stay far below the time, it is the host.
    if arithmetic + traffic < cost.seconds / 2:
        return "the host"
    return "arithmetic" if arithmetic > traffic else "memory"


def lines(plan: Plan) -> list[str]:
    """What the tables mean, and what to do."""
    memory, asked = plan.memory, plan.memory.asked
    total = memory.total(memory.worst)
    lengths = [n for d in memory.demands for u in d.updates for b in u for n in b.responses]
    found = [
        f"{memory.walk.parameters:,} parameters, {len(lengths)} responses of "
        f"{mean(lengths):,.0f} tokens on average, {memory.walk.pages} KV pages a GPU, "
        f"{memory.walk.recomputed} layers make their activations again",
        f"memory: {'fits' if memory.fits else 'does NOT fit'}; {memory.worst} takes "
        f"{total / GIB:.1f} of {asked.capacity / GIB:.1f} GiB that tensors can have",
    ]
    if plan.changed:
        found.append(f"to make it fit (planned again with it): {' '.join(plan.changes)}")
        found += [f"  then {line}" for line in price(plan.changed)]
    elif plan.changes is None:
        found.append("nothing found that makes it fit: a smaller model")
    else:
        found += price(plan)
    return found


def price(plan: Plan) -> list[str]:
    """Time and, with a price, dollars."""
    asked = plan.memory.asked
    found = [
        f"time: {plan.step_seconds:.1f} s a step (floor {plan.step_floor:.1f} s), of which a GPU "
        f"waits {plan.waiting:.1f} s for the slowest; {asked.config.train.steps} steps and "
        f"evaluations of {plan.evaluation_seconds:.0f} s take {plan.hours:.1f} h"
    ]
    if plan.dollars is not None:
        found.append(
            f"price: {plan.hours * asked.hardware.gpus:.0f} GPU hours at "
            f"{asked.plan.price_per_hour:g} $ are {plan.dollars:,.0f} $"
        )
    return found


def draw(plan: Plan, out: Path) -> None:
    """Seconds by phase, and memory by part at the worst moment of each phase, to the PNG `out`."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    names = [name for name, costs in plan.phases.items() if max(c.seconds for c in costs) > 0]
    slowest = [max(cost.seconds for cost in plan.phases[name]) for name in names]
    floors = [max(cost.floor for cost in plan.phases[name]) for name in names]
    left.barh(names, slowest, color=PALETTE[0], label="estimate")
    left.barh(names, floors, color=PALETTE[1], height=0.35, label="floor")
    left.invert_yaxis()
    left.set_xlabel("seconds of a step, slowest GPU")
    hours = plan.step_seconds / HOUR * plan.memory.asked.config.train.steps
    left.set_title(f"{plan.step_seconds:.0f} s a step, {hours:.0f} h", loc="left")
    left.legend(frameon=False)
    memory = plan.memory
    before = [0.0] * len(memory.walk.memory)
    for part, colour in zip((*PARTS, *PASS), (*PALETTE, GREY), strict=True):
        sizes = [found[part] / GIB for found in memory.walk.memory.values()]
        right.bar([*memory.walk.memory], sizes, bottom=before, color=colour, label=part)
        before = [a + b for a, b in zip(before, sizes, strict=True)]
    capacity = memory.asked.capacity / GIB
    right.axhline(capacity, color="black", lw=1, ls=(0, (4, 3)))
    right.set_ylabel("GiB on one GPU; dashed: what there is")
    right.set_ylim(0, 1.08 * max(capacity, *before))
    right.set_title(f"memory on {memory.asked.name}", loc="left")
    right.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out, dpi=DPI, format="png")
