"""One query a sequence over its paged keys and values: the GPU fallback where no library serves.

    out = softmax(scale · q kᵀ) v over the first cache_seqlens[b] entries of sequence b

One program for each sequence and key head. The query heads that share the key head are the rows of
the products, padded to the 16 that a tensor core takes, so that a page is read once for all of
them: decoding is bound by that read. Tiles of entries fold into a running max and sums (arXiv
2205.14135, algorithm 1); an entry's page comes from the block table, so any page size serves.
Entries beyond the length are never read. Scores are float32; probabilities are rounded to the
cache's dtype, as FlashAttention does. float32 caches multiply in float32, not TF32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton_impl.common import unit_columns

_LOG2_E = 1.4426950408889634
# Entries of a tile by bytes an element: float32 products on plain cores spill with more than 32.
_TILE = {2: 64, 4: 32}
_WARPS = 8


def paged_decode_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    cache_seqlens: Tensor,
    scale: float,
) -> Tensor:
    """out [B, Hq, D]: q [B, Hq, D]; caches [P, page, Hkv, D]; block_table int32 [B, N].

    cache_seqlens int32 [B] entries are attended to; none gives 0. See ops.paged_decode_attention.
    """
    batch, heads, size = q.shape
    page, kv_heads = k_cache.shape[1:3]
    q, k_cache, v_cache = unit_columns(q), unit_columns(k_cache), unit_columns(v_cache)
    block_table = unit_columns(block_table)
    out = torch.empty(batch, heads, size, dtype=q.dtype, device=q.device)
    group = heads // kv_heads
    paged_decode_attention_kernel[(batch, kv_heads)](
        q,
        k_cache,
        v_cache,
        block_table,
        cache_seqlens.contiguous(),
        out,
        *q.stride()[:2],
        *k_cache.stride()[:3],
        *v_cache.stride()[:3],
        block_table.stride(0),
        scale=scale * _LOG2_E,
        PAGE=page,
        GROUP=group,
        ROWS=max(16, triton.next_power_of_2(group)),
        SIZE=size,
        WIDE=max(16, triton.next_power_of_2(size)),
        TILE=_TILE[k_cache.element_size()],
        num_warps=_WARPS,
    )
    return out


@triton.jit
def paged_decode_attention_kernel(
    q,
    k_cache,
    v_cache,
    block_table,
    cache_seqlens,
    out,
    q_batch,
    q_head,
    k_page,
    k_entry,
    k_head,
    v_page,
    v_entry,
    v_head,
    table_stride,
    scale: tl.constexpr,
    PAGE: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    SIZE: tl.constexpr,
    WIDE: tl.constexpr,
    TILE: tl.constexpr,
):
    sequence = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1).to(tl.int64)
    length = tl.load(cache_seqlens + sequence)
    block_table += sequence * table_stride
    k_cache += kv_head * k_head
    v_cache += kv_head * v_head
    member = tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, WIDE)[None, :]
    inside = (member < GROUP) & (column < SIZE)
    first = kv_head * GROUP
    queries = tl.load(q + sequence * q_batch + (first + member) * q_head + column, inside, 0.0)
    m = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    mixed = tl.zeros((ROWS, WIDE), tl.float32)
    for start in range(0, length, TILE):
        entry = start + tl.arange(0, TILE)
        within = entry < length
        page = tl.load(block_table + entry // PAGE, mask=within, other=0).to(tl.int64)[:, None]
        slot = (entry % PAGE)[:, None].to(tl.int64)
        there = within[:, None] & (column < SIZE)
        keys = tl.load(k_cache + page * k_page + slot * k_entry + column, mask=there, other=0.0)
        scores = tl.dot(queries, tl.trans(keys), input_precision="ieee") * scale
        scores = tl.where(within[None, :], scores, float("-inf"))
        top = tl.maximum(m, tl.max(scores, 1))  # a tile has at least one entry: finite
        keep = tl.exp2(m - top)
        p = tl.exp2(scores - top[:, None])
        values = tl.load(v_cache + page * v_page + slot * v_entry + column, mask=there, other=0.0)
        total = total * keep + tl.sum(p, 1)
        mixed = mixed * keep[:, None]
        mixed = tl.dot(p.to(values.dtype), values, mixed, input_precision="ieee")
        m = top
    mixed = tl.where(total[:, None] == 0, 0.0, mixed / total[:, None])  # no entries
    at = (sequence * tl.num_programs(1) * GROUP + first + member) * SIZE + column
    tl.store(out + at, mixed.to(out.dtype.element_ty), mask=inside)
