"""What a figure depends on besides the code: the machine, its ceilings, versions, the commit."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import torch

import kernels
from trainer.flops import copy_rate, peak_flops, stated_peak

ROUNDS = 5
LOOKS = 10
LIMIT = 256 << 20  # bytes of the product in the GEMM that is measured


@dataclass(frozen=True)
class Ceilings:
    """FLOP/s and bytes/s, read and write counted, that nothing on this machine exceeds."""

    gemm: float
    copy: float
    stated: bool

    def floor(self, flops: float, moved: float) -> float:
        """Seconds that the arithmetic or the memory traffic takes at least."""
        return max(flops / self.gemm, moved / self.copy)


def ceilings(device: torch.device, dtype: torch.dtype, gemm: tuple[int, int, int]) -> Ceilings:
    """Those of `device` for [m, k] x [k, n] in `dtype`: stated where known, else measured."""
    if device.type == "cuda":
        peak = stated_peak(torch.cuda.get_device_name(device))
        if peak is not None:
            return Ceilings(peak_flops(device, dtype), peak.memory, True)
    # Large products are not the fastest ones on the CPU, so a cut that stays in cache is tried too.
    shapes = {gemm, (min(gemm[0], 512), gemm[1], min(gemm[2], 1024))}
    return Ceilings(
        max(_gemm_rate(shape, device, dtype) for shape in shapes),
        copy_rate(device),
        False,
    )


def _gemm_rate(gemm: tuple[int, int, int], device: torch.device, dtype: torch.dtype) -> float:
    m, k, n = gemm
    m = max(1, min(m, LIMIT // (n * dtype.itemsize)))
    a, b = (torch.randn(size, device=device).to(dtype) for size in ((m, k), (n, k)))
    product = torch.empty(m, n, device=device, dtype=dtype)
    vendor = _fastest(lambda: torch.mm(a, b.t(), out=product), device)
    return 2 * m * k * n / min(vendor, _fastest(lambda: kernels.linear(a, b), device))


def describe(device: torch.device) -> dict[str, str | int]:
    """The columns of a result that are the same for a whole run."""
    return {
        "machine": _device_name(device),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "omp_policy": os.environ.get("OMP_WAIT_POLICY", "default"),
        "commit": _commit(),
    }


def busy() -> float:
    """Processes that want a core beside this one, on average over half a second; Linux only."""
    loads = Path("/proc/loadavg")
    if not loads.exists():
        return 0.0
    found = []
    for _ in range(LOOKS):
        time.sleep(0.5 / LOOKS)
        found.append(int(loads.read_text().split()[3].split("/")[0]) - 1)
    return sum(found) / LOOKS


def warn_if_busy() -> None:
    """Says so when other processes will be in the figures."""
    if (others := busy()) > 0.5:
        print(f"not idle: {others:.1f} other processes run, and these figures prove nothing")


def _fastest(run, device: torch.device) -> float:
    found = []
    for _ in range(ROUNDS + 1):  # the first one warms up; the minimum leaves it out
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return min(found)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()} × {os.cpu_count()}"


def _commit() -> str:
    """Short hash, with a + when tracked files differ from it; empty outside a checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "-s", "-uno") else "")
