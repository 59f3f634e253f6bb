"""AdamW on split float32 weights, elementwise.

    m' = m + (1 − β1)(g − m);  v' = β2 v + (1 − β2) g²
    w' = w (1 − lr λ) − lr / (1 − β1^t) · m' / (√v' / √(1 − β2^t) + ε)

w is joined from its halves as it is loaded and split as it is stored, so each tensor passes memory
once in each direction, the gradient in one: 28 bytes a number. A step that is skipped reads its
flag and nothing else.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK, _WARPS = 1024, 4


def adamw_split_(
    weight: Tensor,
    low: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    factors: Tensor,
    skip: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
) -> None:
    """One tensor of ops.adamw_split_; `factors` float32 [3] are its `step_factors`."""
    size = weight.numel()
    adamw_split_kernel[(triton.cdiv(size, _BLOCK),)](
        weight.view(torch.int16),
        low,
        grad.contiguous(),
        exp_avg,
        exp_avg_sq,
        size,
        factors,
        skip,
        TO_GRAD=1 - beta1,
        BETA2=beta2,
        TO_SQUARE=1 - beta2,
        EPS=eps,
        BLOCK=_BLOCK,
        num_warps=_WARPS,
    )


@triton.jit
def adamw_split_kernel(
    weight,
    low,
    grad,
    exp_avg,
    exp_avg_sq,
    size,
    factors,
    skip,
    TO_GRAD: tl.constexpr,
    BETA2: tl.constexpr,
    TO_SQUARE: tl.constexpr,
    EPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    if tl.load(skip) == 0:
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = at < size
        decay, minus_rate = tl.load(factors), tl.load(factors + 1)
        root = tl.load(factors + 2)
        high = tl.load(weight + at, mask=inside, other=0).to(tl.int32)
        rest = tl.load(low + at, mask=inside, other=0).to(tl.int32)
        g = tl.load(grad + at, mask=inside, other=0.0)
        m = tl.load(exp_avg + at, mask=inside, other=0.0)
        v = tl.load(exp_avg_sq + at, mask=inside, other=0.0)
        # (high << 16) + low with its borrow taken first: no sum here leaves 32 bits.
        bits = ((high + (rest >> 15)) << 16) | (rest & 0xFFFF)
        if TO_GRAD < 0.5:
            m += TO_GRAD * (g - m)
        else:  # from the nearer end, as torch.lerp
            m = g + (TO_GRAD - 1.0) * (g - m)
        v = v * BETA2 + TO_SQUARE * g * g
        w = bits.to(tl.float32, bitcast=True) * decay
        w += minus_rate * m / (tl.sqrt(v) / root + EPS)
        bits = w.to(tl.int32, bitcast=True)
        tl.store(weight + at, (((bits >> 15) + 1) >> 1).to(tl.int16), mask=inside)
        tl.store(low + at, bits.to(tl.int16), mask=inside)
        tl.store(exp_avg + at, m, mask=inside)
        tl.store(exp_avg_sq + at, v, mask=inside)
