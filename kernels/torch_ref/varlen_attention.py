"""Causal attention over packed sequences, one after the other, float32 inside."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor


def forward(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, scale: float
) -> tuple[Tensor, Tensor]:
    """See ops.varlen_attention; (out [T, Hq, D], lse [Hq, T])."""
    groups = q.shape[1] // k.shape[1]
    out = q.new_empty(q.shape)
    lse = _wide(q.new_empty(q.shape[1], q.shape[0]))
    for rows in _sequences(cu_seqlens):
        scores = _scores(_heads(q[rows]), _heads(k[rows], groups), scale)
        lse[:, rows] = scores.logsumexp(-1)
        out[rows] = (scores.softmax(-1) @ _heads(v[rows], groups)).transpose(0, 1).to(q.dtype)
    return out, lse


def backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dq, dk, dv): with dP = dO vᵀ, dS = p · (dP - Σ dO · out) since a softmax row sums to 1.

    FlashAttention-2 (arXiv 2307.08691), section 3.1.
    """
    groups = q.shape[1] // k.shape[1]
    dq, dk, dv = (x.new_empty(x.shape) for x in (q, k, v))
    for rows in _sequences(cu_seqlens):
        queries, grads = _heads(q[rows]), _heads(grad_out[rows])  # [Hq, n, D]
        keys, values = _heads(k[rows], groups), _heads(v[rows], groups)
        p = (_scores(queries, keys, scale) - lse[:, rows, None]).exp()  # [Hq, n, n]
        delta = (grads * _heads(out[rows])).sum(-1, keepdim=True)
        ds = p * (grads @ values.mT - delta) * scale
        dq[rows] = (ds @ keys).transpose(0, 1).to(q.dtype)
        dk[rows] = _per_key_head(ds.mT @ queries, groups).to(k.dtype)
        dv[rows] = _per_key_head(p.mT @ grads, groups).to(v.dtype)
    return dq, dk, dv


def _sequences(cu_seqlens: Tensor) -> Iterator[slice]:
    return (slice(*bounds) for bounds in pairwise(cu_seqlens.tolist()) if bounds[0] < bounds[1])


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _heads(x: Tensor, groups: int = 1) -> Tensor:
    """[n, heads, D] as [heads · groups, n, D]."""
    return _wide(x).transpose(0, 1).repeat_interleave(groups, 0)


def _per_key_head(x: Tensor, groups: int) -> Tensor:
    """[Hq, n, D] summed over the query heads of each key head: [n, Hkv, D]."""
    return x.unflatten(0, (-1, groups)).sum(1).transpose(0, 1)


def _scores(q: Tensor, k: Tensor, scale: float) -> Tensor:
    size = q.shape[1]
    future = torch.ones(size, size, dtype=torch.bool, device=q.device).triu(1)
    return (q @ k.mT * scale).masked_fill(future, -torch.inf)
