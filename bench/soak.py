"""`python -m bench.soak`: thousands of steps with faults thrown in, and nothing may leak.

A real run of the embedded model with tiny settings, in this process, and grading workers beside
it. At random, from a seed, a gradient is NaN, memory runs out in a micro-batch, the disk is full
while a checkpoint is written, or a grading worker is killed at its answer; the KV cache has so few
pages that samples are preempted at nearly every step. Behind each step it looks at resident memory,
threads, processes, open files and pages. Writes docs/soak.md with a plot; exits with 1 when a check
fails. Linux only.

The disk is really full where `--folder` is on a small file system, and said to be elsewhere:

    unshare --user --map-root-user --mount sh -c \
        'mount -t tmpfs -o size=96m none FOLDER && python -m bench.soak --folder FOLDER'
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, redirect_stdout
from pathlib import Path

import torch
from matplotlib.figure import Figure

from bench.machine import describe
from bench.plots import BLUE, GREY, LINE
from bench.soak_faults import Soak, is_small, with_faults
from trainer.checkpoint import find_checkpoint
from trainer.grading.grader import Grader
from trainer.grading.pool import WorkerPool
from trainer.loop import Run, run_loop
from trainer.record import METRICS, read_rows
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
WORKERS, SECONDS, MEMORY_MIB = 2, 5.0, 1024  # conf/grading/default.yaml
WARM_UP, WINDOW = 0.2, 0.05  # shares of the steps: not looked at; median of a window at each end
MAX_GROWTH = 0.02


def window(values: Sequence[float], start: float) -> float:
    """Median of the window that begins at this share of the values."""
    first = int(start * len(values))
    return statistics.median(values[first : first + max(1, int(WINDOW * len(values)))])


def checks(soak: Soak, run: Run, log: str, growth: float) -> list[tuple[str, str, bool]]:
    """(what is checked, what was found, whether it holds). `log`: what the run printed."""
    config, faults = run.config, soak.faults
    rows = read_rows(run.folder / METRICS)
    before, after = window(soak.resident, WARM_UP), window(soak.resident, 1 - WINDOW)
    halved = sum(row["timing"]["memory/halved"] > 0 for row in rows)
    lost = config.rollout.prompts * config.rollout.samples * sum(
        row["metrics"]["reason/crashed"] for row in rows
    )  # fmt: skip
    pool = run.trainer.grader.pool
    pool.submit(0, "2", ["3"])
    answer = pool.collect()[0]
    newest = find_checkpoint(run.checkpoints)
    found = [
        (
            f"resident memory grows by at most {growth:.0%} after the first {WARM_UP:.0%}",
            f"{before:.0f} → {after:.0f} MiB, {after / before - 1:+.2%}",
            after / before - 1 <= growth,
        ),
        (
            "metrics.jsonl has exactly one row a step",
            f"{len(rows)} rows",
            [row["step"] for row in rows] == list(range(1, config.train.steps + 1)),
        ),
        thrown("NaN gradient", "skipped an update", run.trainer.optimizer.skipped, soak),
        thrown("out of memory", "halved an update", halved, soak),
        thrown("disk full", "failed a save", log.count("checkpoint failed ("), soak),
        thrown("killed grader", "replaced a worker", pool.replaced, soak),
        (
            "a killed grader loses its answer and no other",
            f"{lost:.0f} lost",
            round(lost) <= faults["killed grader"],
        ),
        ("graders answer at the end", answer, answer == "different"),
        (
            "the last checkpoint verifies",
            str(newest)[-13:],
            newest is not None and newest.name == f"step-{config.train.steps:08d}",
        ),
    ]
    kept = sorted(path.name for path in run.checkpoints.iterdir())
    text, whole = f"{len(kept)} kept", not any("." in name or "ballast" in name for name in kept)
    found.append(("no leftovers of a save", text, whole and len(kept) <= config.checkpoint.keep))
    start = int(WARM_UP * len(soak.held))
    for name in soak.held[0]:
        counts = [held[name] for held in soak.held[start:]]
        text = f"{counts[0]} → {counts[-1]}, at most {max(counts)}"
        found.append((f"no more {name} at the end", text, counts[-1] <= counts[0]))
    return found


def thrown(fault: str, effect: str, count: int, soak: Soak) -> tuple[str, str, bool]:
    """The check that the fault had its effect each time, and that nothing else had it."""
    text = f"every {fault}, and nothing else, {effect}"
    return text, f"{count} of {soak.faults[fault]}", count == soak.faults[fault]


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


def page(soak: Soak, found: list[tuple[str, str, bool]], seconds: float, disk: str) -> str:
    """docs/soak.md. `disk`: how it was full."""
    facts = describe(torch.device("cpu"))
    thrown = "\n".join(f"| {name} | {count} |" for name, count in sorted(soak.faults.items()))
    table = "\n".join(f"| {what} | {text} | {'yes' if ok else 'NO'} |" for what, text, ok in found)
    return (
        "# Soak: many steps with faults thrown in\n\nWritten by `python -m bench.soak`: "
        f"{len(soak.resident)} steps of the embedded model with tiny settings in one process, "
        f"{WORKERS} grading workers beside it, {seconds / 60:.1f} minutes, {facts['machine']}, "
        f"{facts['threads']} thread, torch {facts['torch']}, commit {facts['commit']}. {disk}\n\n"
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
    parser.add_argument("--folder", type=Path, help="where the run's folder is made")
    parser.add_argument("--out", type=Path, default=DOCS, help="folder of soak.md and soak.png")
    parser.add_argument("settings", nargs="*", help="overrides of the run")
    args = parser.parse_args(arguments)
    soak, start = Soak(args.seed, args.often), time.perf_counter()
    with tempfile.TemporaryDirectory(dir=args.folder) as name, ExitStack() as stack:
        folder = Path(name)
        overrides = (*SETTINGS, f"train.steps={args.steps}", f"dir={folder}/run", *args.settings)
        disk = "The full disk was a real one, of a small tmpfs."
        if not is_small(folder):
            disk = "The full disk was an error raised in its place."
        with (folder / "log").open("w") as log, redirect_stdout(log):
            run = prepare(compose_config(overrides), ALONE)
            pool = WorkerPool(
                "bench.soak_worker",
                workers=WORKERS,
                timeout_seconds=SECONDS,
                memory_mib=MEMORY_MIB,
            )
            stack.callback(pool.close)
            run.trainer.grader = Grader(run.config.data.require_think, pool, alarm_share=1.0)
            with with_faults(soak, args.steps):
                run_loop(run)
        found = checks(soak, run, (folder / "log").read_text(), args.growth)
    args.out.mkdir(parents=True, exist_ok=True)
    plot(soak, args.out / "soak.png")
    text = page(soak, found, time.perf_counter() - start, disk)
    (args.out / "soak.md").write_text(text, encoding="utf-8")
    print(text)
    return int(not all(ok for *_, ok in found))


if __name__ == "__main__":
    sys.exit(main())
