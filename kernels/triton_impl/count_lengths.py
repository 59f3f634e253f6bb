"""Token counts of packed responses: first EOS and first end of thinking of each sequence.

One program a sequence, which walks its tokens in tiles until the tile with the first EOS. In each
tile the earliest hit is the minimum of the hits' ends. A pattern of several tokens is compared at
each offset, reading on into the next tile, never beyond the sequence. Integers only, so every
backend gives the same. Reads 8 bytes a token once; nothing to tune. Pattern and EOS are
compile-time constants of the tokenizer.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK, _WARPS = 1024, 4
_NONE = tl.constexpr(0x7FFFFFFF)  # later than any token


def count_lengths(
    ids: Tensor, cu_seqlens: Tensor, eos_id: int, think_end: list[int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(n_total, n_think, n_answer int32 [B], truncated bool [B]); see ops.count_lengths."""
    sequences = cu_seqlens.shape[0] - 1
    device = ids.device
    counts = [torch.empty(sequences, dtype=torch.int32, device=device) for _ in range(3)]
    truncated = torch.empty(sequences, dtype=torch.bool, device=device)
    count_lengths_kernel[(sequences,)](
        ids.contiguous(),
        cu_seqlens.contiguous(),
        *counts,
        truncated,
        EOS=eos_id,
        PATTERN=tuple(think_end),
        WIDTH=len(think_end),
        BLOCK=_BLOCK,
        num_warps=_WARPS,
    )
    return (*counts, truncated)


@triton.jit
def count_lengths_kernel(
    ids,
    cu_seqlens,
    n_total,
    n_think,
    n_answer,
    truncated,
    EOS: tl.constexpr,
    PATTERN: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sequence = tl.program_id(0)
    begin = tl.load(cu_seqlens + sequence)
    length = tl.load(cu_seqlens + sequence + 1) - begin
    ids += begin.to(tl.int64)
    lane = tl.arange(0, BLOCK)
    start = tl.full((), 0, tl.int32)
    total = tl.full((), _NONE, tl.int32)  # tokens up to and with the first EOS
    think = tl.full((), _NONE, tl.int32)
    while (start < length) & (total == _NONE):
        at = start + lane
        token = tl.load(ids + at, mask=at < length, other=0)
        end = tl.where((at < length) & (token == EOS), at + 1, _NONE)
        total = tl.min(end, 0)
        hit = at < length  # one that leaves the sequence ends beyond n_total, and is none
        for i in tl.static_range(WIDTH):
            token = tl.load(ids + at + i, mask=at + i < length, other=0)
            hit = hit & (token == PATTERN[i])
        think = tl.minimum(think, tl.min(tl.where(hit, at + WIDTH, _NONE), 0))
        start += BLOCK
    counted = tl.minimum(total, length)
    think = tl.where(think <= counted, think, counted)
    tl.store(n_total + sequence, counted)
    tl.store(n_think + sequence, think)
    tl.store(n_answer + sequence, counted - think)
    tl.store(truncated + sequence, total == _NONE)
