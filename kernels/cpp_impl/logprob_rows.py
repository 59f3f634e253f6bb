"""The row passes of linear_logprob in C++; arguments were validated by `kernels.ops`."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.cpp_impl.loading import F32, I32, I64, PTR, bind

DTYPES = (torch.float32,)  # of the logits; others go to another backend
# logits, rows, columns, temperature, targets; logprob, stats; threads
_forward = bind("lcpo_logprob_forward", PTR, I64, I64, F32, PTR, PTR, PTR, I32)
# logits, rows, columns, temperature, targets, stats, grad_logprob, grad_entropy, threads
_backward = bind("lcpo_logprob_backward", PTR, I64, I64, F32, PTR, PTR, PTR, PTR, I32)


def logprob_rows(logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """See torch_ref.linear_logprob.logprob_rows; logits float32 [b, V], dense."""
    rows, columns = logits.shape
    targets = targets.contiguous()
    logprob, stats = torch.empty(rows), torch.empty(rows, 3)
    _forward(
        logits.data_ptr(),
        rows,
        columns,
        temperature,
        targets.data_ptr(),
        logprob.data_ptr(),
        stats.data_ptr(),
        torch.get_num_threads(),
    )
    return logprob, stats


def logprob_rows_backward(
    logits: Tensor,
    targets: Tensor,
    stats: Tensor,
    grad_logprob: Tensor | None,
    grad_entropy: Tensor | None,
    temperature: float,
) -> None:
    """See torch_ref.linear_logprob.logprob_rows_backward; logits float32 [b, V], dense."""
    rows, columns = logits.shape
    targets, stats = targets.contiguous(), stats.contiguous()
    grads = [g if g is None else g.contiguous() for g in (grad_logprob, grad_entropy)]
    _backward(
        logits.data_ptr(),
        rows,
        columns,
        temperature,
        targets.data_ptr(),
        stats.data_ptr(),
        *(g if g is None else g.data_ptr() for g in grads),
        torch.get_num_threads(),
    )
