"""The faults of bench.soak: what is thrown into a run, and what is seen behind each step."""

from __future__ import annotations

import errno
import os
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from bench.memory import MIB, status
from trainer import loop, step
from trainer.grading import grader
from trainer.grading.pool import WorkerPool
from trainer.optim import Optimizer
from trainer.rollout import RolloutEngine
from trainer.rollout.pages import PagePool
from trainer.types import Problem

# Chances: of a NaN in an optimizer step, of no memory in a micro-batch, of a full disk in a save,
# of a killed worker at an answer.
NAN, NO_MEMORY, DISK_FULL, KILLED = 0.01, 0.005, 0.2, 0.005
QUIET_CALLS = 40  # without a second failed allocation: two in one update rightly end the run
SMALL_DISK = 1 << 30  # bytes: a larger file system is never filled


@dataclass
class Soak:
    """What was thrown in, and what was seen behind each step."""

    seed: int = 0
    often: float = 1.0  # multiplies every chance
    faults: Counter[str] = field(default_factory=Counter)
    at: list[tuple[int, str]] = field(default_factory=list)  # (step, fault)
    resident: list[float] = field(default_factory=list)  # MiB
    held: list[dict[str, int]] = field(default_factory=list)
    pools: list[PagePool] = field(default_factory=list)
    quiet: int = 0
    dice: dict[str, random.Random] = field(default_factory=dict)

    def rng(self, fault: str) -> random.Random:
        """Of one fault: how often another one is asked for depends on the machine's speed."""
        return self.dice.setdefault(fault, random.Random(f"{self.seed} {fault}"))

    def strikes(self, fault: str, chance: float) -> bool:
        """Whether the fault happens now."""
        if self.rng(fault).random() >= self.often * chance:
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
        files = len(os.listdir(proc / "fd"))
        pages = sum(pool.used for pool in self.pools)
        self.pools.clear()
        self.held.append(
            {
                "threads": len(threads),
                "processes": len(children),
                "open files": files,
                "pages held": pages,
            }
        )


def is_small(folder: Path) -> bool:
    """Whether the folder is on a file system that may be filled."""
    found = os.statvfs(folder)
    return found.f_blocks * found.f_frsize <= SMALL_DISK


@contextmanager
def filled(folder: Path, left: int) -> Iterator[None]:
    """The folder's file system has no more than `left` bytes free."""
    found = os.statvfs(folder)
    size = found.f_bavail * found.f_frsize - left
    ballast = folder / "ballast"
    try:
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, size))
        yield
    finally:
        ballast.unlink()


def with_faults(soak: Soak, steps: int) -> ExitStack:
    """Has a run of so many steps meet the faults, and `soak` look behind each of them."""
    stack = ExitStack()
    for owner, name, function in (
        (Optimizer, "step", spoiled_step(soak)),
        (step, "policy_loss", short_of_memory(soak)),
        (loop, "write_state", full_disk(soak, steps)),
        (WorkerPool, "submit", killed_worker(soak)),
        (grader, "undecided", ask_always),
        (loop, "train_step", watched_step(soak)),
        (RolloutEngine, "pool_for", remembered_pool(soak)),
    ):
        stack.enter_context(mock.patch.object(owner, name, function))
    return stack


def ask_always(answer: str, problem: Problem) -> tuple[str, ...]:
    """In place of `undecided`: the sums' truths are integers, which the exact tier decides."""
    return problem.answers


def spoiled_step(soak: Soak) -> Any:
    """Optimizer.step with a NaN in the gradient."""
    take_step = Optimizer.step

    def spoiled(optimizer: Optimizer) -> torch.Tensor:
        if soak.strikes("NaN gradient", NAN):
            optimizer.parameters[0].grad[0] = torch.nan
        return take_step(optimizer)

    return spoiled


def short_of_memory(soak: Soak) -> Any:
    """step.policy_loss without the memory for it."""
    policy_loss = step.policy_loss

    def short(*parts: Any) -> Any:
        soak.quiet -= 1
        if soak.quiet < 0 and soak.strikes("out of memory", NO_MEMORY):
            soak.quiet = QUIET_CALLS
            raise torch.OutOfMemoryError("simulated: out of memory")
        return policy_loss(*parts)

    return short


def full_disk(soak: Soak, steps: int) -> Any:
    """loop.write_state on a full disk, a real one where it is small; not for the last save."""
    write_state = loop.write_state

    def full(trainer: step.Trainer, folder: Path, *parts: Any) -> None:
        if trainer.step == steps or not soak.strikes("disk full", DISK_FULL):
            write_state(trainer, folder, *parts)
        elif is_small(folder):
            # Somewhere within the three tensors of each parameter.
            needed = 3 * sum(p.numel() * p.itemsize for p in trainer.model.parameters())
            with filled(folder.parent, soak.rng("place").randrange(needed)):
                write_state(trainer, folder, *parts)
        else:
            raise OSError(errno.ENOSPC, f"simulated: {os.strerror(errno.ENOSPC)}")

    return full


def killed_worker(soak: Soak) -> Any:
    """WorkerPool.submit with a SIGKILL for a worker that is at an answer."""
    submit, killed = WorkerPool.submit, set()

    def kill_after(pool: WorkerPool, *parts: Any) -> None:
        submit(pool, *parts)
        busy = [w.process for w in pool._workers if w.question and w.process.pid not in killed]
        if busy and soak.strikes("killed grader", KILLED):
            process = soak.rng("victim").choice(busy)
            killed.add(process.pid)
            process.kill()

    return kill_after


def watched_step(soak: Soak) -> Any:
    """loop.train_step, with a look behind it."""
    train_step = loop.train_step

    def watched(trainer: step.Trainer) -> Any:
        stats = train_step(trainer)
        soak.look()
        soak.faults["preempted samples"] += int(stats.metrics["rollout/preempted"])
        return stats

    return watched


def remembered_pool(soak: Soak) -> Any:
    """RolloutEngine.pool_for, whose pages are counted behind the step."""
    pool_for = RolloutEngine.pool_for

    def remembered(engine: RolloutEngine, requests: Any) -> PagePool:
        soak.pools.append(pool_for(engine, requests))
        return soak.pools[-1]

    return remembered
