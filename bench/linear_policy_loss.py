"""`python -m bench.linear_policy_loss`: the policy loss under a linear head, in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

import kernels
from bench.case import Bench, Case
from bench.harness import main
from bench.linear_logprob import TEMPERATURE, eager

CLIP, KL, ENTROPY = 0.2, 0.001, 0.001
SETTINGS = {
    "clip_low": CLIP,
    "clip_high": CLIP,
    "kl_coef": KL,
    "kl_grad": "k3",
    "entropy_coef": ENTROPY,
}
SEQUENCES = 16


def eager_loss(hidden: Tensor, weight: Tensor, targets: Tensor, *rest: Tensor) -> Tensor:
    """As one writes it: whole logits, log_softmax, gather, entropy; clipped ratio and k3."""
    logprob, entropy = eager(hidden, weight, targets)
    old, ref, advantage, seq_weight, seq_ids = rest
    a, ratio, d = advantage[seq_ids.long()], (logprob - old).exp(), ref - logprob
    clipped = torch.maximum(-ratio * a, -ratio.clamp(1 - CLIP, 1 + CLIP) * a)
    loss = clipped + KL * (d.exp() - d - 1) - ENTROPY * entropy
    return (seq_weight[seq_ids.long()] * loss).sum()


def two_ops(hidden: Tensor, weight: Tensor, targets: Tensor, *rest: Tensor) -> Tensor:
    """linear_logprob and policy_loss, which recompute the logits in the backward pass."""
    logprob, entropy = kernels.linear_logprob(hidden, weight, targets, temperature=TEMPERATURE)
    return kernels.policy_loss(logprob, *rest[:2], entropy, *rest[2:], **SETTINGS)[0]


def ours(*tensors: Tensor) -> Tensor:
    """The op, on the backend that is chosen automatically."""
    return kernels.linear_policy_loss(*tensors, temperature=TEMPERATURE, **SETTINGS)[0]


def make(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Case:
    """Inputs of one case, a few sequences; three products, all of them in the forward pass."""
    rows, width, vocab = shape
    hidden = torch.randn(rows, width, device=device).to(dtype).requires_grad_()
    weight = (torch.randn(vocab, width, device=device) / width**0.5).to(dtype).requires_grad_()
    targets = torch.randint(0, vocab, (rows,), device=device)
    old, ref = (-10 - torch.rand(rows, device=device) for _ in range(2))
    advantage, seq_weight = torch.randn(SEQUENCES, device=device), torch.ones(SEQUENCES) / rows
    seq_ids = torch.arange(rows, device=device, dtype=torch.int32) * SEQUENCES // rows
    product, moved = 2.0 * rows * width * vocab, (hidden.numel() + weight.numel()) * dtype.itemsize
    return Case(
        (hidden, weight, targets, old, ref, advantage, seq_weight.to(device), seq_ids.int()),
        {
            "ours": ours,
            "linear_logprob + policy_loss": two_ops,
            "eager": eager_loss,
            "torch.compile": torch.compile(eager_loss, dynamic=False),
        },
        work=((3 * product, 3 * moved), (0.0, 0.0)),
        gemm=(rows, width, vocab),
    )


BENCH = Bench(
    "linear_policy_loss",
    make,
    "T H V",
    shapes=[(2048, 576, 49_152)],
    quick=[(64, 32, 257)],
    gpu=[(16_384, 1536, 151_936)],
)
if __name__ == "__main__":
    main(BENCH)
