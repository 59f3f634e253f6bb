"""glibc's heap: gaps are given back when new blocks do not fill them."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from trainer.allocator import keep_freed_memory

SCRIPT = """
import ctypes
from pathlib import Path
from trainer.allocator import MIB, Gaps, keep_freed_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

assert keep_freed_memory()
c = ctypes.CDLL(None)
c.malloc.restype, c.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
c.free.argtypes = [ctypes.c_void_p]
blocks = [c.malloc(MIB) for _ in range(400)]
for block in blocks:
    ctypes.memset(block, 1, MIB)
for block in blocks[:-1:2]:  # gaps of 1 MiB, the end stays taken
    c.free(block)
full, gaps = resident(), Gaps()
gaps.took(Gaps.EVERY - 1)
assert resident() > full - 20 * MIB
gaps.took(1)
assert resident() < full - 150 * MIB
for block in blocks[1:-40:2]:
    c.free(block)
full = resident()
for block in blocks[-39::2]:  # 20 MiB at the end: kept for the next block
    c.free(block)
assert resident() > full - 5 * MIB
"""


def test_what_the_environment_sets_stands(monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "0")
    assert not keep_freed_memory()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="not glibc")
def test_gaps_are_given_back_and_the_end_is_kept():
    subprocess.run([sys.executable, "-c", SCRIPT], check=True)
