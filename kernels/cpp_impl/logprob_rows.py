"""The row passes of linear_logprob in C++; arguments were validated by `kernels.ops`."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.cpp_impl.loading import BOOL, F32, I32, I64, PTR, bind

_forward = bind(
    "lcpo_logprob_forward",
    *(PTR, BOOL, I64, I64, I64),  # logits, is_bf16, rows, columns, stride
    *(F32, PTR, PTR, PTR, I32),  # temperature, targets; logprob, stats; threads
)
_backward = bind(
    "lcpo_logprob_backward",
    *(PTR, BOOL, I64, I64, I64),  # logits, is_bf16, rows, columns, stride
    *(F32, PTR, PTR, PTR, PTR),  # temperature, targets, stats, grad_logprob, grad_entropy
    *(PTR, I64, I32),  # d_logits, its columns; threads
)
_merge = bind(
    "lcpo_logprob_merge",
    *(PTR, PTR, I64, I64, I64),  # logprob, stats, tiles, rows, width
    *(F32, PTR, PTR, PTR),  # temperature, targets; logprob, stats
)


def logprob_rows(logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """See torch_ref.linear_logprob.logprob_rows; rows of logits [b, V] may be strided."""
    rows, columns = logits.shape
    targets = targets.contiguous()
    logprob, stats = torch.empty(rows), torch.empty(rows, 3)
    _forward(
        logits.data_ptr(),
        logits.dtype == torch.bfloat16,
        rows,
        columns,
        logits.stride(0),
        temperature,
        targets.data_ptr(),
        logprob.data_ptr(),
        stats.data_ptr(),
        torch.get_num_threads(),
    )
    return logprob, stats


def merge(
    parts: list[tuple[Tensor, Tensor]], targets: Tensor, width: int, temperature: float
) -> tuple[Tensor, Tensor]:
    """See torch_ref.linear_logprob.merge; a row's result does not depend on the other rows."""
    if len(parts) == 1:
        return parts[0]
    of_tiles, stats_of_tiles = (torch.stack(part) for part in zip(*parts, strict=True))
    targets = targets.contiguous()
    logprob, stats = torch.empty(len(targets)), torch.empty(len(targets), 3)
    _merge(
        of_tiles.data_ptr(),
        stats_of_tiles.data_ptr(),
        len(parts),
        len(targets),
        width,
        temperature,
        targets.data_ptr(),
        logprob.data_ptr(),
        stats.data_ptr(),
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
    """See torch_ref.linear_logprob.logprob_rows_backward; logits [b, V], dense."""
    write_gradient(logits, targets, stats, grad_logprob, grad_entropy, temperature, logits)


def write_gradient(
    logits: Tensor,
    targets: Tensor,
    stats: Tensor,
    grad_logprob: Tensor | None,
    grad_entropy: Tensor | None,
    temperature: float,
    d_logits: Tensor,
) -> None:
    """The gradient by logits [b, V] into d_logits [b, >= V], dense, zero in columns from V on."""
    rows, columns = logits.shape
    targets, stats = targets.contiguous(), stats.contiguous()
    grads = [g if g is None else g.contiguous() for g in (grad_logprob, grad_entropy)]
    _backward(
        logits.data_ptr(),
        logits.dtype == torch.bfloat16,
        rows,
        columns,
        logits.stride(0),
        temperature,
        targets.data_ptr(),
        stats.data_ptr(),
        *(g if g is None else g.data_ptr() for g in grads),
        d_logits.data_ptr(),
        d_logits.shape[1],
        torch.get_num_threads(),
    )
