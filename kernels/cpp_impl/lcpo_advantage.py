"""lcpo_advantage in C++; arguments were validated by `kernels.ops`."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.cpp_impl.loading import BOOL, F32, F64, I32, I64, PTR, bind

_ESTIMATORS = {"grpo": 0, "dr_grpo": 1, "rloo": 2}  # as in csrc/lcpo_advantage.cpp
_lcpo_advantage = bind(
    "lcpo_lcpo_advantage",
    *(PTR, PTR, PTR, PTR, PTR, I64, I64),  # correct, n_y, n_gold, mode, group; rows, groups
    *(BOOL, F32, F32, F32, I32, F64),  # sigmoid, alpha_exact, alpha_max, delta, estimator, eps
    *(PTR, PTR, PTR),  # length, reward, advantage
)


def lcpo_advantage(
    correct: Tensor,
    n_y: Tensor,
    n_gold: Tensor,
    mode: Tensor,
    group: Tensor,
    num_groups: int,
    kind: str,
    alpha_exact: float,
    alpha_max: float,
    delta: float,
    estimator: str,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See torch_ref.lcpo_advantage."""
    inputs = [x.contiguous() for x in (correct, n_y, n_gold, mode, group)]
    length, reward, advantage = (torch.empty(correct.shape) for _ in range(3))
    _lcpo_advantage(
        *(x.data_ptr() for x in inputs),
        correct.shape[0],
        num_groups,
        kind == "sigmoid",
        alpha_exact,
        alpha_max,
        delta,
        _ESTIMATORS[estimator],
        eps,
        *(x.data_ptr() for x in (length, reward, advantage)),
    )
    return correct.clone(), length, reward, advantage
