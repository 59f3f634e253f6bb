"""adamw_split_ in C++; arguments were validated by `kernels.ops`."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.cpp_impl.loading import F64, I32, I64, PTR, bind

# weight, low, grad, exp_avg, exp_avg_sq, size; factors, skip, beta1, beta2, eps; threads
_update = bind("lcpo_adamw_split", *(PTR,) * 5, I64, PTR, PTR, F64, F64, F64, I32)


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
    grad = grad.contiguous()
    _update(
        *(x.data_ptr() for x in (weight, low, grad, exp_avg, exp_avg_sq)),
        weight.numel(),
        factors.data_ptr(),
        skip.data_ptr(),
        beta1,
        beta2,
        eps,
        torch.get_num_threads(),
    )
