"""count_lengths in C++; arguments were validated by `kernels.ops`."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.cpp_impl.loading import I64, PTR, bind

_count_lengths = bind("lcpo_count_lengths", PTR, PTR, I64, I64, PTR, I64, PTR, PTR, PTR, PTR)


def count_lengths(
    ids: Tensor, cu_seqlens: Tensor, eos_id: int, think_end: list[int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See ops.count_lengths."""
    ids, cu_seqlens = ids.contiguous(), cu_seqlens.contiguous()
    sequences = cu_seqlens.shape[0] - 1
    counts = tuple(torch.empty(sequences, dtype=torch.int32) for _ in range(3))
    truncated = torch.empty(sequences, dtype=torch.bool)
    pattern = torch.tensor(think_end)
    _count_lengths(
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
