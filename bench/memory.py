"""Extra memory of one forward and backward pass: the peak beyond inputs, outputs and gradients.

Those every contender must hold; the rest is what it costs. On the CPU the peak is the kernel's own
high-water mark of resident memory, in a fresh process for each contender: nothing that another one,
or an earlier call, has left in the allocator or in a cache of ours can hide it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor

from bench.case import Bench, Case, Contender, backward, differentiable, warm_up

MIB = 2**20


def peaks(
    bench: Bench, case: Case, index: int, device: torch.device, args: argparse.Namespace
) -> dict[str, float]:
    """{contender: MiB} for the case of that index among those of the command line."""
    if device.type == "cuda":
        return {name: _cuda_peak(function, case) for name, function in case.able().items()}
    # Freed memory goes back to the system at once, or one tensor's rest would be another's room.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(MIB), "MALLOC_TRIM_THRESHOLD_": "0"}
    found = {}
    for name in case.able():
        command = [sys.executable, "-m", f"bench.{bench.op}", "--peak", str(index), name]
        command += ["--threads", str(args.threads), *(["--quick"] if args.quick else [])]
        child = subprocess.run(
            command, env=environment, check=True, stdout=subprocess.PIPE, text=True
        )
        found[name] = float(child.stdout.split()[-1])
    return found


def print_peak(bench: Bench, shape: tuple[int, ...], dtype: torch.dtype, contender: str) -> None:
    """In the fresh process: print the MiB of `contender` at this shape."""
    tiny = bench.make(bench.quick[0], dtype, torch.device("cpu"))
    warm_up(tiny.contenders[contender], tiny.inputs)  # libraries, thread pools
    case = bench.make(shape, dtype, torch.device("cpu"))
    function = case.contenders[contender]
    if "compile" in contender:  # the compiler's own memory is not the op's
        warm_up(function, case.inputs)
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, the high-water mark
    held = _both(function, case)
    print(max(0.0, (status("VmHWM") - before - _bytes(held)) / MIB))


def _cuda_peak(function: Contender, case: Case) -> float:
    warm_up(function, case.inputs)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    held = _both(function, case)
    return max(0.0, (torch.cuda.max_memory_allocated() - before - _bytes(held)) / MIB)


def _both(function: Contender, case: Case) -> list[Tensor]:
    """Outputs and gradients, those that came in included, which the pass cannot do without."""
    outputs = function(*case.inputs)
    wanting = differentiable(outputs)
    upstream = [torch.ones_like(o) for o in wanting]
    found = backward(wanting, case.inputs, upstream)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return [x for x in (*outputs, *upstream, *found) if isinstance(x, Tensor)]


def _bytes(tensors: list[Tensor]) -> int:
    return sum(x.numel() * x.itemsize for x in tensors)


def status(field: str) -> int:
    """Bytes of resident memory now (VmRSS), or at most since the last reset (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(x for x in lines if x.startswith(field + ":")).split()[1])
