"""Inputs of the attention tests, and attention as one writes it down: the truth in float64."""

from itertools import pairwise

import torch
from torch import Tensor

SCALE = 0.31
# The C++ kernels take 64 keys at a time and 16 in a register; queries 24 rows at a time and 16 to
# 384 positions. So: one and two tokens; below, at and above a register, and a block of keys; two
# blocks and one; several query tiles.
LENGTHS = [1, 2, 15, 16, 17, 64, 65, 129, 300]


def packed(lengths, heads=6, kv_heads=2, size=16, dtype=torch.float32, seed=0):
    """q, k, v (values that bfloat16 holds exactly, as `dtype`) and cu_seqlens."""
    generator = torch.Generator().manual_seed(seed)
    tensors = [
        torch.randn(sum(lengths), h, size, generator=generator).bfloat16().to(dtype)
        for h in (heads, kv_heads, kv_heads)
    ]
    return *tensors, torch.tensor([0, *lengths]).cumsum(0).int()


def naive(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, scale: float = SCALE) -> Tensor:
    """softmax(scale · q kᵀ + causal mask) v, one sequence after the other, by autograd's means."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    out = [q[:0]]
    for start, stop in pairwise(cu_seqlens.tolist()):
        rows = slice(start, stop)
        scores = torch.einsum("ihd,jhd->hij", q[rows], k[rows]) * scale
        future = torch.ones(stop - start, stop - start, dtype=torch.bool).triu(1)
        p = scores.masked_fill(future, -torch.inf).softmax(-1)
        out.append(torch.einsum("hij,jhd->ihd", p, v[rows]))
    return torch.cat(out)


def paged(k: Tensor, v: Tensor, cu_seqlens: Tensor, page: int, fill: float, seed: int = 0):
    """k, v of packed sequences in pages dealt at random; (k_cache, v_cache, block_table).

    Slots that no token fills hold `fill`.
    """
    lengths = cu_seqlens.diff().tolist()
    needed = -(max(lengths) // -page)
    pages = needed * len(lengths)
    generator = torch.Generator().manual_seed(seed)
    block_table = torch.randperm(pages, generator=generator).int().view(len(lengths), needed)
    caches = [x.new_full((pages, page, *x.shape[1:]), fill) for x in (k, v)]
    for row, (start, stop) in enumerate(pairwise(cu_seqlens.tolist())):
        t = torch.arange(stop - start)
        at = block_table[row, t // page].long(), t % page
        for cache, x in zip(caches, (k, v), strict=True):
            cache[at] = x[start:stop]
    return *caches, block_table
