"""Attention over packed sequences (training, prefill) and over a dense cache (decoding)."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import dispatch
from kernels.ops.checks import require_cu_seqlens, require_dtype, require_shape


def varlen_attention(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, *, scale: float
) -> Tensor:
    """Causal attention of each packed sequence over itself; returns [T, Hq, D].

    q [T, Hq, D]; k, v [T, Hkv, D], Hq a multiple of Hkv (query head h reads key head
    h // (Hq / Hkv)); cu_seqlens int32 [B + 1] from 0 to T, best on the CPU: elsewhere it is read
    back once. No sequence may be longer than max_seqlen. Scores are multiplied by `scale`.
    Differentiable in q, k and v. What one sequence holds cannot change another's output.
    """
    tokens, heads, size = q.shape
    require_shape("k", k, (tokens, None, size))
    require_shape("v", v, tuple(k.shape))
    _require_groups(heads, k.shape[1])
    cu_seqlens = cu_seqlens.cpu()
    require_cu_seqlens(cu_seqlens, tokens)
    longest = int(cu_seqlens.diff().amax()) if cu_seqlens.shape[0] > 1 else 0
    if longest > max_seqlen:
        raise ValueError(f"a sequence of {longest} tokens exceeds max_seqlen={max_seqlen}")
    q, k, v = _autocast(q, k, v)
    run = dispatch.select("varlen_attention", q.device, q.dtype)
    return run(q, k, v, cu_seqlens, max_seqlen, scale)


def decode_attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, *, scale: float
) -> Tensor:
    """One query a row over the first `lengths` entries of its cache; returns [B, Hq, D].

    q [B, Hq, D]; k_cache, v_cache [B, S, Hkv, D], Hq a multiple of Hkv; lengths int32 or int64
    [B], 1 <= lengths <= S. Entries beyond are never read into the result as long as they are
    finite. Raises ValueError for shapes that do not fit.
    """
    batch, heads, size = q.shape
    require_shape("k_cache", k_cache, (batch, None, None, size))
    require_shape("v_cache", v_cache, tuple(k_cache.shape))
    require_shape("lengths", lengths, (batch,))
    require_dtype("lengths", lengths, torch.int32, torch.int64)
    _require_groups(heads, k_cache.shape[2])
    q, k_cache, v_cache = _autocast(q, k_cache, v_cache)
    run = dispatch.select("decode_attention", q.device, q.dtype)
    return run(q, k_cache, v_cache, lengths, scale)


def _require_groups(heads: int, kv_heads: int) -> None:
    if kv_heads == 0 or heads % kv_heads:
        raise ValueError(f"{heads} query heads cannot share {kv_heads} key/value heads evenly")


def _autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Under autocast the dtype attention runs in: norms of q and k leave them in float32."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    return tuple(x.to(torch.get_autocast_dtype(device)) for x in tensors)
