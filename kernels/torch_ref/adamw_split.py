"""AdamW on split float32 weights in plain torch: join, update, split."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.torch_ref.split_bits import join_bits, split_bits


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
    decay, minus_rate, root = factors
    m = exp_avg.lerp(grad, 1 - beta1)
    v = exp_avg_sq * beta2 + (1 - beta2) * grad * grad
    w = join_bits(weight, low) * decay + minus_rate * m / (v.sqrt() / root + eps)
    kept = (weight, low, exp_avg, exp_avg_sq)
    for old, new in zip(kept, (*split_bits(w), m, v), strict=True):
        old.copy_(torch.where(skip, old, new))
