"""Runs a target case by case, with a limit on each, and keeps one shrunk input for each failure.

A case is (target, seed, number): the same three give the same input on any machine.
"""

from __future__ import annotations

import contextlib
import random
import resource
import signal
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz.mutate import shrink
from tests.fuzz.targets import Target

CASE_SECONDS = 2.0  # of processor time, so that a busy machine cannot fake a hang
CASE_BYTES = 2 << 30  # of address space, beyond what the process has; more is a MemoryError


class Hang(BaseException):
    """An input took longer than CASE_SECONDS."""


@dataclass
class Found:
    """A failure: where, with what, and how."""

    target: str
    seed: int
    number: int
    text: str
    error: str


@dataclass
class Summary:
    """What became of a target's cases."""

    target: str
    seconds: float = 0.0
    cases: int = 0
    refused: int = 0
    slowest: float = 0.0  # seconds of processor time
    slowest_number: int = 0
    found: list[Found] = field(default_factory=list)


def make_input(target: Target, seed: int, number: int) -> str:
    """The seeds themselves first, then what is made of them."""
    if number < len(target.seeds):
        return target.seeds[number]
    return target.mutate(random.Random(f"{target.name} {seed} {number}"), target.seeds)


def run_target(
    target: Target, seconds: float, seed: int = 0, limit: float = CASE_SECONDS
) -> Summary:
    """Cases 0, 1, ... for so many seconds, the target's own seeds in any case."""
    summary = Summary(target.name)
    kinds: set[str] = set()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        folder = Path(name)
        while summary.cases < len(target.seeds) or time.monotonic() < begun + seconds:
            number = summary.cases
            text = make_input(target, seed, number)
            start = time.process_time()
            outcome = run_case(target, text, folder, limit)
            spent = time.process_time() - start
            summary.cases += 1
            if spent > summary.slowest:
                summary.slowest, summary.slowest_number = spent, number
            if outcome == "refused":
                summary.refused += 1
            elif outcome and (kind := kind_of(outcome)) not in kinds:
                kinds.add(kind)

                def fails(shorter: str, kind: str = kind) -> bool:
                    return kind_of(run_case(target, shorter, folder, limit)) == kind

                short = shrink(text, fails)
                summary.found.append(Found(target.name, seed, number, short, outcome))
    summary.seconds = time.monotonic() - begun
    return summary


def kind_of(outcome: str) -> str:
    """The exception and where it was raised: one find a kind."""
    lines = [line for line in outcome.splitlines() if line.strip()]
    places = [line for line in lines if line.startswith("  File ")]
    return "".join([*places[-1:], lines[-1].partition(":")[0]]) if lines else ""


def run_case(target: Target, text: str, folder: Path, limit: float = CASE_SECONDS) -> str:
    """Empty when it was read, "refused" when refused as it should be, else what went wrong.

    `folder` may hold what an earlier case of the same target has left.
    """
    watch = Watch()
    with watch, time_limit(limit), memory_limit(CASE_BYTES):
        target.run(text, folder)
    error = watch.error
    if error is None:
        return ""
    what = f"{type(error).__name__}: {error}"
    if isinstance(error, target.refusals):
        if type(error) in target.refusals and target.named.format(folder=folder) in str(error):
            return "refused"
        what = f"refused by accident: {what}"
    return "".join(traceback.format_exception(error)) + f"\n{what}"


class Watch:
    """Keeps any exception of its block, as any is what is looked for; Ctrl-C passes."""

    def __init__(self) -> None:
        self.error: BaseException | None = None

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        self.error = error
        return isinstance(error, Exception | Hang)


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises Hang in this thread after so much processor time."""

    def stop(number: int, frame: object) -> None:
        raise Hang(f"more than {seconds} s")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


@contextlib.contextmanager
def memory_limit(size: int) -> Iterator[None]:
    """Lets the process grow by so many bytes; does nothing where Linux' statm is missing."""
    statm = Path("/proc/self/statm")
    before = resource.getrlimit(resource.RLIMIT_AS)
    if not statm.exists():
        yield
        return
    held = int(statm.read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
