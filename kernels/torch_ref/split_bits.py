"""A float32 number as a bfloat16 number and 16 bits more, and back."""

from __future__ import annotations

import torch
from torch import Tensor


def split_bits(x: Tensor) -> tuple[Tensor, Tensor]:
    """See ops.split_bits."""
    bits = x.contiguous().view(torch.int32)
    # (bits + 0x8000) >> 16, without the sum that overflows.
    high = (bits >> 15).add_(1).bitwise_right_shift_(1)
    return high.to(torch.int16).view(torch.bfloat16), bits.to(torch.int16)


def join_bits(high: Tensor, low: Tensor) -> Tensor:
    """See ops.join_bits."""
    bits = high.contiguous().view(torch.int16).to(torch.int32).bitwise_left_shift_(16)
    return bits.add_(low).view(torch.float32)
