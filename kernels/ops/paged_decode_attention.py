"""Attention of one new token a row over a paged cache: decoding."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import dispatch
from kernels.ops.checks import (
    autocast,
    require_dtype,
    require_groups,
    require_range,
    require_shape,
)


def paged_decode_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    cache_seqlens: Tensor,
    *,
    scale: float,
) -> Tensor:
    """softmax(scale · q kᵀ) v of one query a row over its cached tokens; returns [B, Hq, D].

    q [B, Hq, D]; k_cache, v_cache [P, page, Hkv, D] of q's dtype, Hq a multiple of Hkv (query head
    h reads key head h // (Hq / Hkv)); under autocast all are cast to its dtype. Position t of row b
    lies in page block_table[b, t // page], slot t % page: block_table int32 [B, N], each entry in
    [0, P), unused ones too. Row b attends to its positions 0 … cache_seqlens[b] - 1: int32 [B],
    1 <= cache_seqlens <= N · page. What lies in other slots cannot change the result, NaN included.
    Not differentiable.

    The compiled CPU backend gives a row the same bits whatever else is in the batch and however
    large the pages are, and those of varlen_attention for the sequence's last token.
    Raises ValueError for shapes or dtypes that do not fit and, on the CPU, for values out of range.
    """
    require_shape("q", q, (None, None, None))
    batch, heads, size = q.shape
    require_shape("k_cache", k_cache, (None, None, None, size))
    require_shape("v_cache", v_cache, tuple(k_cache.shape))
    require_shape("block_table", block_table, (batch, None))
    require_dtype("block_table", block_table, torch.int32)
    require_shape("cache_seqlens", cache_seqlens, (batch,))
    require_dtype("cache_seqlens", cache_seqlens, torch.int32)
    require_groups(heads, k_cache.shape[2])
    q, k_cache, v_cache = autocast(q, k_cache, v_cache)
    require_dtype("k_cache", k_cache, q.dtype)
    require_dtype("v_cache", v_cache, q.dtype)
    return _op(q, k_cache, v_cache, block_table, cache_seqlens, float(scale))


@torch.library.custom_op("lcpo::paged_decode_attention", mutates_args=())
def _op(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    cache_seqlens: Tensor,
    scale: float,
) -> Tensor:
    """out [B, Hq, D]."""
    pages, page = k_cache.shape[:2]
    require_range("cache_seqlens", cache_seqlens, 1, block_table.shape[1] * page + 1)
    require_range("block_table", block_table, 0, pages)
    if q.shape[0] == 0:
        return q.new_empty(q.shape)
    run = dispatch.select("paged_decode_attention", q.device, q.dtype)
    return run(q, k_cache, v_cache, block_table, cache_seqlens, scale)


@_op.register_fake
def _(q, k_cache, v_cache, block_table, cache_seqlens, scale):
    return q.new_empty(q.shape)
