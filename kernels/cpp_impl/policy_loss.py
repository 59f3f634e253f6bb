"""policy_loss in C++; arguments were validated by `kernels.ops`."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.cpp_impl.loading import BOOL, F64, I32, I64, PTR, bind

_policy_loss = bind(
    "lcpo_policy_loss",
    *(PTR, PTR, PTR, PTR, PTR, PTR, PTR),  # logprob, old, ref, entropy, advantage, weight, ids
    *(I64, F64, F64, F64, BOOL, F64),  # rows, clip_low, clip_high, kl_coef, corrected, entropy_coef
    *(PTR, PTR, PTR, PTR, I32),  # loss, d_logprob, d_entropy, stats; threads
)


def policy_loss(
    logprob: Tensor,
    old: Tensor,
    ref: Tensor | None,
    entropy: Tensor | None,
    advantage: Tensor,
    seq_weight: Tensor,
    seq_ids: Tensor,
    clip_low: float,
    clip_high: float,
    kl_coef: float,
    kl_grad: str,
    entropy_coef: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See torch_ref.policy_loss."""
    inputs = [
        x if x is None else x.contiguous()
        for x in (logprob, old, ref, entropy, advantage, seq_weight, seq_ids)
    ]
    loss, stats = torch.empty(()), torch.empty(6)
    d_logprob, d_entropy = torch.empty(logprob.shape), torch.empty(logprob.shape)
    _policy_loss(
        *(x if x is None else x.data_ptr() for x in inputs),
        logprob.shape[0],
        clip_low,
        clip_high,
        kl_coef,
        kl_grad == "corrected",
        entropy_coef,
        *(x.data_ptr() for x in (loss, d_logprob, d_entropy, stats)),
        torch.get_num_threads(),
    )
    return loss, d_logprob, d_entropy, stats
