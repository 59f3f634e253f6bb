"""paged_decode_attention in C++; arguments were validated by `kernels.ops`."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.cpp_impl.loading import BOOL, F32, I32, I64, PTR, bind

_decode = bind(
    "lcpo_paged_decode_attention",
    *(PTR, PTR, PTR, BOOL),  # q, k_cache, v_cache, is_bf16
    *(PTR, PTR, I64, I64, I64),  # block_table, cache_seqlens, rows, page_size, pages_per_row
    *(I64, I64, I64, F32),  # heads, kv_heads, size, scale
    *(PTR, I32),  # out; threads
)


def paged_decode_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    cache_seqlens: Tensor,
    scale: float,
) -> Tensor:
    """See ops.paged_decode_attention. The caches should be dense: they would be copied else."""
    q, k_cache, v_cache, block_table, cache_seqlens = (
        x.contiguous() for x in (q, k_cache, v_cache, block_table, cache_seqlens)
    )
    out = torch.empty_like(q)
    rows, heads, size = q.shape
    _decode(
        *(x.data_ptr() for x in (q, k_cache, v_cache)),
        q.dtype == torch.bfloat16,
        block_table.data_ptr(),
        cache_seqlens.data_ptr(),
        rows,
        k_cache.shape[1],
        block_table.shape[1],
        heads,
        k_cache.shape[2],
        size,
        scale,
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out
