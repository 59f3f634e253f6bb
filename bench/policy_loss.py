"""`python -m bench.policy_loss`: the clipped loss of tokens whose log-probs are known."""

from __future__ import annotations

import torch
from torch import Tensor

import kernels
from bench.case import Bench, Case
from bench.harness import main
from bench.linear_policy_loss import CLIP, ENTROPY, KL, SEQUENCES, SETTINGS


def eager(logprob: Tensor, old: Tensor, ref: Tensor, entropy: Tensor, *rest: Tensor) -> Tensor:
    """As one writes it, without statistics."""
    advantage, seq_weight, seq_ids = rest
    a, ratio, d = advantage[seq_ids.long()], (logprob - old).exp(), ref - logprob
    clipped = torch.maximum(-ratio * a, -ratio.clamp(1 - CLIP, 1 + CLIP) * a)
    loss = clipped + KL * (d.exp() - d - 1) - ENTROPY * entropy
    return (seq_weight[seq_ids.long()] * loss).sum()


def make(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Case:
    """Five columns in and two out; the backward pass scales the two."""
    (rows,) = shape
    logprob, old, ref = (-torch.rand(rows, device=device) for _ in range(3))
    entropy = torch.rand(rows, device=device).requires_grad_()
    advantage, seq_weight = (torch.randn(SEQUENCES, device=device) for _ in range(2))
    seq_ids = (torch.arange(rows, device=device) * SEQUENCES // rows).int()
    return Case(
        (logprob.requires_grad_(), old, ref, entropy, advantage, seq_weight, seq_ids),
        {
            "ours": lambda *tensors: kernels.policy_loss(*tensors, **SETTINGS)[0],
            "eager": eager,
            "torch.compile": torch.compile(eager, dynamic=False),
        },
        work=((0.0, 7 * logprob.nbytes), (0.0, 4 * logprob.nbytes)),
    )


BENCH = Bench(
    "policy_loss",
    make,
    "T",
    shapes=[(16_384,)],
    quick=[(257,)],
    gpu=[(32_768,)],
    dtypes=[torch.float32],
    gpu_dtypes=[torch.float32],
)
if __name__ == "__main__":
    main(BENCH)
