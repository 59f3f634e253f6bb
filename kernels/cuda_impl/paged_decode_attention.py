"""paged_decode_attention on CUDA by flash-attn, for pages that it takes."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from kernels.cuda_impl.loading import flash_attn, takes

PAGE_MULTIPLE = 256  # of flash_attn_with_kvcache


def paged_decode_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    cache_seqlens: Tensor,
    scale: float,
    otherwise: Callable[..., Tensor],
) -> Tensor:
    """See ops.paged_decode_attention; `otherwise` runs what flash-attn does not take."""
    if k_cache.shape[1] % PAGE_MULTIPLE or not takes(q):
        return otherwise(q, k_cache, v_cache, block_table, cache_seqlens, scale)
    return flash_attn().flash_attn_with_kvcache(
        q[:, None],
        k_cache,
        v_cache,
        cache_seqlens=cache_seqlens,
        block_table=block_table,
        softmax_scale=scale,
        causal=True,
    )[:, 0]
