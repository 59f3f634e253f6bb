"""Token counts of packed responses, by index arithmetic: no Python loop over tokens."""

from __future__ import annotations

import torch
from torch import Tensor


def count_lengths(
    ids: Tensor, cu_seqlens: Tensor, eos_id: int, think_end: list[int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(n_total, n_think, n_answer int32 [B], truncated bool [B]); see ops.count_lengths."""
    starts, lengths = cu_seqlens[:-1].long(), cu_seqlens.diff().long()  # [B]
    token = torch.arange(ids.shape[0], device=ids.device)
    sequence = torch.repeat_interleave(lengths, output_size=ids.shape[0])  # [T]
    position = token - starts[sequence]  # [T], 0 at each sequence's start

    def first_end(hit: Tensor, width: int) -> Tensor:
        """Tokens up to and with the first hit of a pattern of `width`, T + width if none; [B]."""
        none = ids.shape[0] + width
        end = torch.where(hit, position + width, none)
        return torch.full_like(lengths, none).scatter_reduce_(0, sequence, end, "amin")

    n_eos = first_end(ids == eos_id, 1)
    n_total = torch.minimum(n_eos, lengths)
    hit = torch.ones_like(ids, dtype=torch.bool)
    for offset, wanted in enumerate(think_end):
        # roll wraps round the end; a match that leaves its sequence ends beyond n_total anyway
        hit &= ids.roll(-offset) == wanted
    n_think = first_end(hit, len(think_end))
    n_think = torch.where(n_think <= n_total, n_think, n_total)
    return n_total.int(), n_think.int(), (n_total - n_think).int(), n_eos > lengths
