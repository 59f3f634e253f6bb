"""Causal attention over packed sequences, and one query per row over a dense cache."""

from __future__ import annotations

import functools
from dataclasses import dataclass
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
    plan = _plan(tuple(cu_seqlens.tolist()), q.device)
    if not plan:
        return torch.zeros_like(q)
    out = []
    for block in plan:
        attended = F.scaled_dot_product_attention(
            *(_padded(x, block) for x in (q, k, v)), is_causal=True, scale=scale, enable_gqa=True
        )
        out.append(attended.transpose(1, 2).flatten(0, 1).index_select(0, block.place))
    source = torch.cat([block.source for block in plan])
    return torch.zeros_like(q).index_copy(0, source, torch.cat(out))


@dataclass(frozen=True)
class _Block:
    """Sequences of similar length, right-padded to the longest."""

    sequences: int
    longest: int
    source: Tensor  # int64 [n], rows of its n tokens in the packed tensor
    place: Tensor  # int64 [n], their rows in the flattened [sequences * longest] block


def _padded(x: Tensor, block: _Block) -> Tensor:
    """The block's rows of x [T, heads, D], zero elsewhere: [sequences, heads, longest, D]."""
    flat = x.new_zeros(block.sequences * block.longest, *x.shape[1:])
    flat = flat.index_copy(0, block.place, x.index_select(0, block.source))
    return flat.unflatten(0, (block.sequences, block.longest)).transpose(1, 2)


# Cached since every layer of a forward pass asks for the same one; index tensors only.
@functools.lru_cache(maxsize=8)
@torch.inference_mode(False)  # a tensor made in inference mode could not serve a backward pass
def _plan(bounds: tuple[int, ...], device: torch.device) -> list[_Block]:
    return [_block(bounds, members, device) for members in _similar(bounds)]


def _block(bounds: tuple[int, ...], members: list[int], device: torch.device) -> _Block:
    starts = torch.tensor([bounds[i] for i in members])
    lengths = torch.tensor([bounds[i + 1] - bounds[i] for i in members])
    owner = torch.repeat_interleave(lengths)  # int64 [n], sequence of each token
    within = torch.arange(len(owner)) - (lengths.cumsum(0) - lengths)[owner]
    longest = int(lengths[0])  # see _similar
    source, place = starts[owner] + within, owner * longest + within
    return _Block(len(members), longest, source.to(device), place.to(device))


def _similar(bounds: tuple[int, ...]) -> list[list[int]]:
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
        q.reshape(batch, kv_heads, heads // kv_heads, size),
        k_cache.transpose(1, 2),
        v_cache.transpose(1, 2),
        attn_mask=mask,
        scale=scale,
    )
    return out.reshape(batch, heads, size)
