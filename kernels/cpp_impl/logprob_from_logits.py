"""logprob_from_logits in C++: the row passes of linear_logprob on logits that are given."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.cpp_impl.logprob_rows import logprob_rows, write_gradient


def forward(
    logits: Tensor, targets: Tensor, temperature: float, vocab_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """See torch_ref.logprob_from_logits.forward; rows may be strided."""
    logprob, stats = logprob_rows(_inside(logits, vocab_size), targets, temperature)
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
    """See torch_ref.logprob_from_logits.backward."""
    d_logits = torch.empty(logits.shape, dtype=logits.dtype)
    inside, grads = _inside(logits, vocab_size), (grad_logprob, grad_entropy)
    write_gradient(inside, targets, stats, *grads, temperature, d_logits)
    return d_logits


def _inside(logits: Tensor, vocab_size: int) -> Tensor:
    """The columns that count, as they lie: no copy unless columns are strided."""
    inside = logits[:, :vocab_size]
    return inside if inside.stride(1) == 1 else inside.contiguous()
