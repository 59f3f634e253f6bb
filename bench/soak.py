"""`python -m bench.soak`: thousands of steps with faults thrown in, and nothing may leak.

A real run of the embedded model with tiny settings, in this process. At random, from a seed, a
gradient is NaN, memory runs out in a micro-batch, or the disk is full while a checkpoint is
written; the KV cache has so few pages that samples are preempted at nearly every step. Behind each
step it looks at resident memory, threads, children, open files and pages. Writes docs/soak.md with
a plot; exits with 1 when a check fails. Linux only.
"""

from __future__ import annotations

import argparse
import errno
import os
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from matplotlib.figure import Figure

from bench.machine import describe
from bench.memory import MIB, status
from bench.plots import BLUE, GREY, LINE
from trainer import loop, step
from trainer.checkpoint import find_checkpoint
from trainer.loop import Run, run_loop
from trainer.optim import Optimizer
from trainer.record import METRICS, read_rows
from trainer.rollout import RolloutEngine
from trainer.rollout.pages import PagePool
from trainer.run import compose_config, prepare
from trainer.world import ALONE

DOCS = Path(__file__).resolve().parents[1] / "docs"
SETTINGS = (
    "+experiment=l1_exact",
    "scale=embedded",
    "threads=1",
    "budget.min=8",
    "budget.max=32",
    "rollout.prompts=4",
    "rollout.samples=4",
    "rollout.max_response_tokens=32",
    "rollout.batch_size=16",
    "rollout.pages=14",  # one sample may take 6
    "train.micro_batch_tokens=256",
    "optim.lr=1e-5",
    "optim.max_skips=20",
    "evaluate.every=0",
    "evaluate.problems=2",
    "evaluate.budgets=[16]",
    "checkpoint.every=20",
    "checkpoint.max_failures=20",
)
# Chances: of a NaN in an optimizer step, of no memory in a micro-batch, of a full disk in a save.
NAN, NO_MEMORY, DISK_FULL = 0.01, 0.005, 0.2
QUIET_CALLS = 40  # without a second failed allocation: two in one update rightly end the run
WARM_UP, WINDOW = 0.2, 0.05  # shares of the steps: not looked at; median of a window at each end
MAX_GROWTH = 0.02
NAMES = ("threads", "children", "open files", "pages held")


@dataclass
class Soak:
    """What was thrown in, and what was seen behind each step."""

    rng: random.Random
    faults: Counter[str] = field(default_factory=Counter)
    resident: list[float] = field(default_factory=list)  # MiB
    held: list[tuple[int, ...]] = field(default_factory=list)  # NAMES, in order
    at: list[tuple[int, str]] = field(default_factory=list)  # (step, fault)
    pools: list[PagePool] = field(default_factory=list)
    quiet: int = 0
    often: float = 1.0  # multiplies every chance
    growth: float = MAX_GROWTH

    def strikes(self, fault: str, chance: float) -> bool:
        """Whether the fault happens now."""
        if self.rng.random() >= self.often * chance:
            return False
        self.faults[fault] += 1
        self.at.append((len(self.resident), fault))
        return True

    def look(self) -> None:
        """Take the figures of this moment."""
        self.resident.append(status("VmRSS") / MIB)
        proc = Path("/proc/self")
        threads = list((proc / "task").iterdir())
        children = [c for t in threads for c in (t / "children").read_text().split()]
        pages = sum(pool.used for pool in self.pools)
        self.pools.clear()
        files = len(os.listdir(proc / "fd"))
        self.held.append((len(threads), len(children), files, pages))


def with_faults(soak: Soak, steps: int) -> ExitStack:
    """Has the run meet the faults, and `soak` look behind each step."""
    take_step, policy_loss, write_state = Optimizer.step, step.policy_loss, loop.write_state
    train_step, pool_for = loop.train_step, RolloutEngine.pool_for

    def spoiled_step(optimizer: Optimizer) -> torch.Tensor:
        if soak.strikes("NaN gradient", NAN):
            optimizer.parameters[0].grad[0] = torch.nan
        return take_step(optimizer)

    def short_of_memory(*parts: Any) -> Any:
        soak.quiet -= 1
        if soak.quiet < 0 and soak.strikes("out of memory", NO_MEMORY):
            soak.quiet = QUIET_CALLS
            raise torch.OutOfMemoryError("simulated: out of memory")
        return policy_loss(*parts)

    def full_disk(trainer: step.Trainer, folder: Path) -> None:
        write_state(trainer, folder)
        if trainer.step < steps and soak.strikes("disk full", DISK_FULL):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def watched_step(trainer: step.Trainer) -> Any:
        stats = train_step(trainer)
        soak.look()
        soak.faults["preempted samples"] += int(stats.metrics["rollout/preempted"])
        return stats

    def remembered_pool(engine: RolloutEngine, requests: Any) -> PagePool:
        soak.pools.append(pool_for(engine, requests))
        return soak.pools[-1]

    stack = ExitStack()
    for owner, name, function in (
        (Optimizer, "step", spoiled_step),
        (step, "policy_loss", short_of_memory),
        (loop, "write_state", full_disk),
        (loop, "train_step", watched_step),
        (RolloutEngine, "pool_for", remembered_pool),
    ):
        stack.enter_context(mock.patch.object(owner, name, function))
    return stack


def window(values: Sequence[float], start: float) -> float:
    """Median of the window that begins at this share of the values."""
    first = int(start * len(values))
    return statistics.median(values[first : first + max(1, int(WINDOW * len(values)))])


def checks(soak: Soak, run: Run, steps: int) -> list[tuple[str, str, bool]]:
    """(what is checked, what was found, whether it holds)."""
    rows = read_rows(run.folder / METRICS)
    before, after = window(soak.resident, WARM_UP), window(soak.resident, 1 - WINDOW)
    growth = after / before - 1
    found = [
        (
            f"resident memory grows by at most {soak.growth:.0%} after the first {WARM_UP:.0%}",
            f"{before:.0f} → {after:.0f} MiB, {growth:+.2%}",
            growth <= soak.growth,
        ),
        (
            "metrics.jsonl has exactly one row a step",
            f"{len(rows)} rows",
            [row["step"] for row in rows] == list(range(1, steps + 1)),
        ),
        (
            "every NaN gradient, and nothing else, skipped an update",
            f"{run.trainer.optimizer.skipped} skipped",
            run.trainer.optimizer.skipped == soak.faults["NaN gradient"],
        ),
        (
            "every failed allocation, and nothing else, halved an update",
            f"{(halved := sum(row['timing']['memory/halved'] > 0 for row in rows))} halved",
            halved == soak.faults["out of memory"],
        ),
        (
            "the last checkpoint verifies",
            str(newest := find_checkpoint(run.checkpoints))[-13:],
            newest is not None and newest.name == f"step-{steps:08d}",
        ),
    ]
    start = int(WARM_UP * len(soak.held))
    for place, name in enumerate(NAMES):
        counts = [held[place] for held in soak.held[start:]]
        text = f"{counts[0]} → {counts[-1]}, at most {max(counts)}"
        found.append((f"no more {name} at the end", text, counts[-1] <= counts[0]))
    return found


def plot(soak: Soak, out: Path) -> None:
    """Resident memory behind each step, and when what was thrown in."""
    figure = Figure(figsize=(7.5, 3.4), layout="constrained")
    memory, faults = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    memory.plot(range(1, len(soak.resident) + 1), soak.resident, color=BLUE, lw=1)
    memory.axvline(WARM_UP * len(soak.resident), color=GREY, lw=0.8, ls=":")
    memory.set_ylim(0, 1.15 * max(soak.resident))
    memory.set_ylabel("resident MiB")
    names = sorted({name for _, name in soak.at})
    for row, name in enumerate(names):
        steps = [at for at, fault in soak.at if fault == name]
        faults.plot(steps, [row] * len(steps), "|", color=LINE, ms=6)
    faults.set_yticks(range(len(names)), names)
    faults.set_ylim(-0.5, len(names) - 0.5)
    faults.set_xlabel("step")
    for axes in (memory, faults):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out, dpi=130, format="png")


def page(soak: Soak, found: list[tuple[str, str, bool]], seconds: float) -> str:
    """docs/soak.md."""
    facts = describe(torch.device("cpu"))
    thrown = "\n".join(f"| {name} | {count} |" for name, count in sorted(soak.faults.items()))
    table = "\n".join(f"| {what} | {text} | {'yes' if ok else 'NO'} |" for what, text, ok in found)
    return (
        "# Soak: many steps with faults thrown in\n\nWritten by `python -m bench.soak`: "
        f"{len(soak.resident)} steps of the embedded model with tiny settings in one process, "
        f"{seconds / 60:.1f} minutes, {facts['machine']}, {facts['threads']} thread, torch "
        f"{facts['torch']}, commit {facts['commit']}.\n\n"
        f"| thrown in | times |\n|---|---|\n{thrown}\n\n"
        f"| check | found | holds |\n|---|---|---|\n{table}\n\n"
        "![Resident memory and faults behind each step](soak.png)\n"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 1 when a check does not hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0, help="of the faults")
    parser.add_argument("--often", type=float, default=1, help="multiplies the chance of a fault")
    parser.add_argument("--growth", type=float, default=MAX_GROWTH, help="of resident memory")
    parser.add_argument("--out", type=Path, default=DOCS, help="folder of soak.md and soak.png")
    parser.add_argument("settings", nargs="*", help="overrides of the run")
    args = parser.parse_args(arguments)
    soak = Soak(random.Random(args.seed), often=args.often, growth=args.growth)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        overrides = (*SETTINGS, f"train.steps={args.steps}", f"dir={folder}/run", *args.settings)
        log = stack.enter_context((Path(folder) / "log").open("w"))
        with redirect_stdout(log):
            run = prepare(compose_config(overrides), ALONE)
            stack.enter_context(with_faults(soak, args.steps))
            run_loop(run)
        found = checks(soak, run, args.steps)
    args.out.mkdir(parents=True, exist_ok=True)
    plot(soak, args.out / "soak.png")
    text = page(soak, found, time.perf_counter() - start)
    (args.out / "soak.md").write_text(text, encoding="utf-8")
    print(text)
    return int(not all(ok for *_, ok in found))


if __name__ == "__main__":
    sys.exit(main())
