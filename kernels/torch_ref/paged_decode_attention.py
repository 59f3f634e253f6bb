"""Attention of one query a row over a paged cache, gathered into a dense one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def paged_decode_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    cache_seqlens: Tensor,
    scale: float,
) -> Tensor:
    """See ops.paged_decode_attention.

    The query heads that share a key head are laid out as query positions, so keys are not repeated.
    """
    batch, heads, size = q.shape
    page, kv_heads = k_cache.shape[1:3]
    if cache_seqlens.device.type == "cpu":  # elsewhere reading it would stall the stream
        block_table = block_table[:, : -(int(cache_seqlens.max()) // -page)]
    columns = torch.arange(block_table.shape[1] * page, device=q.device)
    mask = columns < cache_seqlens[:, None]  # [B, S]
    k, v = (
        cache[block_table.long()].flatten(1, 2).masked_fill(~mask[:, :, None, None], 0)
        for cache in (k_cache, v_cache)
    )  # [B, S, Hkv, D]; zero times the weight 0 stays 0, which NaN would not
    out = F.scaled_dot_product_attention(
        q.reshape(batch, kv_heads, heads // kv_heads, size),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=mask[:, None, None],
        scale=scale,
    )
    return out.reshape(batch, heads, size)
