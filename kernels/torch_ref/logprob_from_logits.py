"""Log-probability and entropy of rows of logits; the row passes are those of linear_logprob."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.torch_ref.linear_logprob import logprob_rows, logprob_rows_backward


def forward(
    logits: Tensor, targets: Tensor, temperature: float, vocab_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(logprob [R], entropy [R], stats [R, 3] for the backward pass); see logprob_rows."""
    logprob, stats = logprob_rows(logits[:, :vocab_size], targets, temperature)
    return logprob, stats[:, 1] - stats[:, 2], stats


def backward(
    grad_logprob: Tensor | None,
    grad_entropy: Tensor | None,
    logits: Tensor,
    targets: Tensor,
    stats: Tensor,
    temperature: float,
    vocab_size: int,
) -> Tensor:
    """d_logits [R, V], dense, of the dtype of logits; columns from vocab_size on are 0."""
    d_logits = torch.zeros(logits.shape, dtype=logits.dtype, device=logits.device)
    inside = d_logits[:, :vocab_size].copy_(logits[:, :vocab_size])
    logprob_rows_backward(inside, targets, stats, grad_logprob, grad_entropy, temperature)
    return d_logits
