"""Tensors in, tensors out around the C functions; arguments were validated by `kernels.ops`."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.cpp_impl.loading import library

# Where an op has a choice, the dtypes it takes here; the others go to another backend.
DTYPES = {
    "sample_tokens": (torch.float32,),
    "linear_logprob": (torch.float32,),
    "linear_logprob_backward": (torch.float32,),
}


def count_lengths(
    ids: Tensor, cu_seqlens: Tensor, eos_id: int, think_end: list[int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See ops.count_lengths."""
    ids, cu_seqlens = ids.contiguous(), cu_seqlens.contiguous()
    sequences = cu_seqlens.shape[0] - 1
    counts = tuple(torch.empty(sequences, dtype=torch.int32) for _ in range(3))
    truncated = torch.empty(sequences, dtype=torch.bool)
    pattern = torch.tensor(think_end)
    library().lcpo_count_lengths(
        ids.data_ptr(),
        cu_seqlens.data_ptr(),
        sequences,
        eos_id,
        pattern.data_ptr(),
        len(think_end),
        *(count.data_ptr() for count in counts),
        truncated.data_ptr(),
    )
    return (*counts, truncated)


def sample_tokens(
    logits: Tensor,
    temperature: float,
    top_k: int,
    top_p: float,
    seeds: Tensor,
    positions: Tensor,
    vocab_size: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """See ops.sample_tokens. Rows may be strided (a slice of a wider tensor), columns not."""
    rows = logits.shape[0]
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    seeds, positions = seeds.contiguous(), positions.contiguous()
    tokens = torch.empty(rows, dtype=torch.int64)
    logprob, cut_logprob = torch.empty(rows), torch.empty(rows)
    library().lcpo_sample_tokens(
        logits.data_ptr(),
        rows,
        logits.stride(0),
        vocab_size,
        temperature,
        top_k,
        top_p,
        seeds.data_ptr(),
        positions.data_ptr(),
        tokens.data_ptr(),
        logprob.data_ptr(),
        cut_logprob.data_ptr(),
        torch.get_num_threads(),
    )
    return tokens, logprob, cut_logprob


def logprob_rows(logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """See torch_ref.linear_logprob.logprob_rows; logits float32 [b, V], dense."""
    rows, columns = logits.shape
    targets = targets.contiguous()
    logprob, stats = torch.empty(rows), torch.empty(rows, 3)
    library().lcpo_logprob_forward(
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
    library().lcpo_logprob_backward(
        logits.data_ptr(),
        rows,
        columns,
        temperature,
        targets.data_ptr(),
        stats.data_ptr(),
        *(g if g is None else g.data_ptr() for g in grads),
        torch.get_num_threads(),
    )
