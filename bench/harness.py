"""How an op is measured. A bench file states what; this states how, once for all of them.

Contenders run interleaved: in each round each of them runs once, so that a slow minute of the
machine hits all alike. Forward, backward and both come from the same calls. Reported are median and
minimum over the rounds, the extra memory of a forward and backward pass (memory.py), and the ratio
to the roofline floor under ceilings measured in the same process.

    python -m bench.<op> [--quick] [--threads N] [--rounds N] [--device cpu|cuda]
                            [--only CONTENDER,...] [--out DIR]

Results go to DIR/bench/results.csv, DIR/bench/<op>.png and DIR/benchmarks.md; DIR is docs, or
runs/bench with --quick, whose shapes only show that all of it works.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import machine, memory, report
from bench.case import Absent, Bench, Case, backward, differentiable, warm_up

SAMPLE_SECONDS = 0.05  # calls of a fast op are repeated within one sample, to be above the clock
PASSES = ("fwd", "bwd", "fwd+bwd")


def main(bench: Bench, arguments: Sequence[str] | None = None) -> None:
    """The command line of one op's bench."""
    parser = argparse.ArgumentParser(prog=f"python -m bench.{bench.op}")
    parser.add_argument("--quick", action="store_true", help="tiny shapes: does it all work?")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--only", help="contenders to measure, comma separated; all if left out")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)  # see memory.py
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    on_gpu = args.device == "cuda"
    shapes = bench.quick if args.quick else bench.gpu if on_gpu else bench.shapes
    dtypes = bench.gpu_dtypes if on_gpu else bench.dtypes
    cases = [(shape, dtype) for shape in shapes for dtype in dtypes]
    if args.peak:
        shape, dtype = cases[int(args.peak[0])]
        memory.print_peak(bench, shape, dtype, args.peak[1])
        return
    if not args.quick:
        machine.warn_if_busy()
    rows = []
    for index, (shape, dtype) in enumerate(cases):
        case = bench.make(shape, dtype, device)
        if args.only:
            kept = {name: case.contenders[name] for name in args.only.split(",")}
            case = dataclasses.replace(case, contenders=kept)
        peaks = memory.peaks(bench, case, index, device, args)
        rows += [
            {"op": bench.op, "shape": bench.name(shape), "dtype": str(dtype).removeprefix("torch.")}
            | row
            | machine.describe(device)
            for row in measure(case, dtype, device, 2 if args.quick else args.rounds, peaks)
        ]
    report.write(args.out or Path("runs/bench" if args.quick else "docs"), bench.op, rows)


def measure(
    case: Case, dtype: torch.dtype, device: torch.device, rounds: int, peaks: dict[str, float]
) -> list[dict[str, Any]]:
    """The rows of one case: a row a contender and pass, with what `peaks` says of memory (MiB)."""
    able = case.able()
    upstream = {name: warm_up(f, case.inputs) for name, f in able.items()}
    repeats = {
        name: max(1, int(SAMPLE_SECONDS / sum(sample(f, case.inputs, upstream[name], 1, device))))
        for name, f in able.items()
    }
    found: dict[str, list[tuple[float, ...]]] = {name: [] for name in able}
    for _ in range(rounds):
        for name, function in able.items():
            found[name].append(sample(function, case.inputs, upstream[name], repeats[name], device))
    limits = machine.ceilings(device, dtype, case.gemm)
    rows = []
    for name, contender in case.contenders.items():
        if isinstance(contender, Absent):
            rows.append({"contender": name, "pass": f"absent: {contender.why}"})
        else:
            found_rows = summary(found[name], [limits.floor(*work) for work in case.work])
            found_rows[-1]["peak_mib"] = f"{peaks[name]:.1f}"
            rows += [{"contender": name} | row for row in found_rows]
    return rows


def summary(samples: list[tuple[float, ...]], floors: list[float]) -> list[dict[str, Any]]:
    """A row a pass, from seconds of (forward, backward) and their floors."""
    columns = list(zip(*samples, strict=True))
    if len(columns) == 2:
        columns, floors = [*columns, tuple(map(sum, samples))], [*floors, sum(floors)]
    return [
        {
            "pass": title,
            "ms_median": milliseconds(statistics.median(seconds)),
            "ms_min": milliseconds(min(seconds)),
            "floor_ms": milliseconds(floor),
            "ratio_to_floor": f"{statistics.median(seconds) / floor:.3g}" if floor else "",
        }
        for title, seconds, floor in zip(PASSES, columns, floors, strict=False)
    ]


def milliseconds(seconds: float) -> str:
    """Four digits, and no exponent."""
    return f"{1e3 * seconds:.4g}" if seconds < 1 else f"{1e3 * seconds:.0f}"


def sample(
    function: Callable[..., Any],
    inputs: Sequence[Tensor],
    upstream: list[Tensor],
    repeats: int,
    device: torch.device,
) -> tuple[float, ...]:
    """Mean seconds of (forward, backward) over `repeats` calls; (forward,) without gradients."""
    marks = []
    for _ in range(repeats):
        start = mark(device)
        outputs = differentiable(function(*inputs))
        middle = mark(device)
        gradients = backward(outputs, inputs, upstream)
        marks.append((start, middle, mark(device)))
        del outputs, gradients  # their memory returns outside the timed part
    forward = sum(between(a, b) for a, b, _ in marks) / repeats
    if not upstream:
        return (forward,)
    return forward, sum(between(b, c) for _, b, c in marks) / repeats


def mark(device: torch.device) -> Any:
    """A point in time: of the host, or in the device's stream."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def between(start: Any, stop: Any) -> float:
    """Seconds between two marks."""
    if isinstance(start, float):
        return stop - start
    torch.cuda.synchronize()
    return start.elapsed_time(stop) / 1e3
