"""A float32 number as the bfloat16 number that computes for it and the 16 bits that this lacks."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import implementations
from kernels.ops.checks import require_dtype, require_shape


def split_bits(x: Tensor) -> tuple[Tensor, Tensor]:
    """x float32 as (high bfloat16, low int16) of its shape, both new and dense.

    Of its bits b, an unsigned 32-bit integer, high is (b + 0x8000) >> 16, and low b - (high << 16).
    So high is x to the nearest, ties away from zero, where torch's cast takes the even one; and no
    bit is lost, of whatever pattern. A NaN need not stay one in high.
    """
    require_dtype("x", x, torch.float32)
    return implementations.split_bits(x)


def join_bits(high: Tensor, low: Tensor) -> Tensor:
    """The float32 numbers of which split_bits gave (high, low): bits (high << 16) + low."""
    require_dtype("high", high, torch.bfloat16)
    require_dtype("low", low, torch.int16)
    require_shape("low", low, tuple(high.shape))
    return implementations.join_bits(high, low)
