"""Causal attention over packed sequences, and one query per row over a dense cache."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

# Sequences shorter than this share of a block's longest open a new block; the slack keeps tiny
# sequences together, where padding is cheaper than another launch.
_SHORTEST, _SLACK = 0.7, 16


def varlen_attention_loop(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, scale: float
) -> Tensor:
    """The specification: softmax(scale · q kᵀ + causal mask) v, one sequence after the other."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    out = [q[:0]]
    for start, stop in pairwise(cu_seqlens.tolist()):
        rows = slice(start, stop)
        scores = torch.einsum("ihd,jhd->hij", q[rows], k[rows]) * scale
        future = torch.ones(stop - start, stop - start, dtype=torch.bool, device=q.device).triu(1)
        p = scores.masked_fill(future, -torch.inf).softmax(-1)
        out.append(torch.einsum("hij,jhd->ihd", p, v[rows]))
    return torch.cat(out)


def varlen_attention(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, scale: float
) -> Tensor:
    """See ops.varlen_attention.

    Sequences of similar length go into one right-padded block. Padding sits after the causal
    horizon of every real query, so no mask is needed, and it is zero, so no sequence can reach
    another's block row, not even with a NaN.
    """
    bounds = cu_seqlens.tolist()
    out, places = [], []
    for members in _similar(bounds):
        lengths = [bounds[i + 1] - bounds[i] for i in members]
        source, place = _indices([bounds[i] for i in members], lengths, q.device)
        blocks = [_padded(x, source, place, len(members), lengths[0]) for x in (q, k, v)]
        attended = F.scaled_dot_product_attention(
            *blocks, is_causal=True, scale=scale, enable_gqa=True
        )
        out.append(attended.transpose(1, 2).flatten(0, 1).index_select(0, place))
        places.append(source)
    if not places:
        return torch.zeros_like(q)
    return torch.zeros_like(q).index_copy(0, torch.cat(places), torch.cat(out))


def _padded(x: Tensor, source: Tensor, place: Tensor, sequences: int, longest: int) -> Tensor:
    """Rows `source` of x [T, heads, D] at `place` of a zero block [B, heads, longest, D]."""
    block = x.new_zeros(sequences * longest, *x.shape[1:])
    block = block.index_copy(0, place, x.index_select(0, source))
    return block.view(sequences, longest, *x.shape[1:]).transpose(1, 2)


def _similar(bounds: list[int]) -> list[list[int]]:
    """Non-empty sequences in groups of similar length, the longest of each group first."""
    lengths = [stop - start for start, stop in pairwise(bounds)]
    blocks: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if lengths[i] == 0:
            break
        if not blocks or lengths[i] + _SLACK < _SHORTEST * lengths[blocks[-1][0]]:
            blocks.append([])
        blocks[-1].append(i)
    return blocks


def _indices(starts: list[int], lengths: list[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows of a block's tokens in the packed tensor, and in the padded block; int64 each.

    The block's first sequence is its longest.
    """
    count = torch.tensor(lengths)
    owner = torch.repeat_interleave(torch.arange(len(lengths)), count)
    within = torch.arange(int(count.sum())) - (count.cumsum(0) - count)[owner]
    source = torch.tensor(starts)[owner] + within
    place = owner * lengths[0] + within
    return source.to(device), place.to(device)


def decode_attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, scale: float
) -> Tensor:
    """See ops.decode_attention.

    The query heads that share a key head are laid out as query positions, so the cache is read
    through its own strides and never repeated.
    """
    batch, heads, size = q.shape
    kv_heads = k_cache.shape[2]
    if lengths.device.type == "cpu":  # elsewhere reading it would stall the stream
        longest = int(lengths.max()) if batch else 0
        k_cache, v_cache = k_cache[:, :longest], v_cache[:, :longest]
    columns = torch.arange(k_cache.shape[1], device=q.device)
    mask = (columns < lengths[:, None])[:, None, None]  # [B, 1, 1, S]
    out = F.scaled_dot_product_attention(
        q.view(batch, kv_heads, heads // kv_heads, size),
        k_cache.transpose(1, 2),
        v_cache.transpose(1, 2),
        attn_mask=mask,
        scale=scale,
    )
    return out.reshape(batch, heads, size)
