"""What the kernels share: readable rows, a max that keeps NaN, and tiles of whole rows."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

LOWEST = tl.constexpr(-1e30)  # stands for -inf where a product with 0 follows: 0 · inf is NaN


def unit_columns(x: Tensor) -> Tensor:
    """`x` itself if its last dimension is dense, else a copy; any other stride is the kernel's."""
    return x if x.stride(-1) == 1 else x.contiguous()


def tile_of_rows(columns: int, elements: int = 2048) -> tuple[int, int]:
    """(rows, columns) of a tile of whole rows, powers of two, of about `elements` elements."""
    wide = triton.next_power_of_2(max(columns, 1))
    return max(1, elements // wide), wide


@triton.jit
def row_offset(row, stride):
    """row · stride in 64 bits."""
    return row.to(tl.int64) * stride


@triton.jit
def max_or_nan(x):
    """Largest entry of x, NaN if there is one: the hardware's max drops them."""
    bad = tl.max((x != x).to(tl.int32), 0)
    return tl.where(bad > 0, float("nan"), tl.max(tl.where(x != x, float("-inf"), x), 0))


@triton.jit
def clamp(x, low: tl.constexpr, high: tl.constexpr):
    """x within [low, high]; NaN stays NaN."""
    return tl.where(x < low, low, tl.where(x > high, high, x))
