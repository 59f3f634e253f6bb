"""What glibc does with memory that a CPU step frees; with any other allocator nothing is done.

A fresh page costs a fault and is cleared, 1.5 µs of 4 KiB on a virtual machine: as long as reading
40 KiB. So what a step frees should stay for the next one, unless it is much and lies in gaps that
nothing fits into.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

MIB = 2**20
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # names of mallopt's parameters, in malloc.h
# Where glibc's own adjustment of both ends after blocks of 32 MiB. Small models never free any, and
# gave back and fetched some 30 MiB in each step.
KEPT_AT_THE_END, LARGEST_IN_THE_HEAP = 64 * MIB, 32 * MIB
_ENVIRONMENT = {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"}


def keep_freed_memory() -> bool:
    """The heap keeps what is freed at its end for the process's next blocks; whether it does.

    Where the environment sets either limit, that stands.
    """
    c = _glibc()
    if c is None or not _ENVIRONMENT.isdisjoint(os.environ):
        return False
    limits = ((MMAP_THRESHOLD, LARGEST_IN_THE_HEAP), (TRIM_THRESHOLD, KEPT_AT_THE_END))
    return all(c.mallopt(name, size) for name, size in limits)


class Gaps:
    """Gives back the gaps that freed blocks leave, whenever enough new blocks did not fill them.

    A backward pass frees activations and takes gradients. Those of SmolLM2-135M left gaps of 245
    MiB while they took 405.
    """

    EVERY = 192 * MIB

    def __init__(self) -> None:
        self._taken = 0

    def took(self, size: int) -> None:
        """A new block of `size` bytes was taken."""
        self._taken += size
        if self._taken < self.EVERY:
            return
        self._taken = 0
        c = _glibc()
        if c is not None:
            c.malloc_trim(0)


def _glibc() -> Any:
    """The C library, if it is one that can be asked."""
    c = ctypes.CDLL(None)
    return c if hasattr(c, "mallopt") and hasattr(c, "malloc_trim") else None
