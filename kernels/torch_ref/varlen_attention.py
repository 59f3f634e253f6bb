"""Causal attention over packed sequences, one after the other, float32 inside."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    scale: float,
    prefix: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See ops.varlen_attention; (out [T, Hq, D], lse [Hq, T])."""
    groups = q.shape[1] // k.shape[1]
    out = q.new_empty(q.shape)
    lse = _wide(q.new_empty(q.shape[1], q.shape[0]))
    for rows, seen in _sequences(cu_seqlens, prefix):
        scores = _scores(_heads(q[rows]), _heads(k[seen], groups), scale)
        lse[:, rows] = scores.logsumexp(-1)
        out[rows] = (scores.softmax(-1) @ _heads(v[seen], groups)).transpose(0, 1).to(q.dtype)
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
    prefix: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dq, dk, dv): with dP = dO vᵀ, dS = p · (dP - Σ dO · out) since a softmax row sums to 1.

    FlashAttention-2 (arXiv 2307.08691), section 3.1.
    """
    groups = q.shape[1] // k.shape[1]
    dq = q.new_empty(q.shape)
    dk, dv = (torch.zeros_like(_wide(x)) for x in (k, v))
    for rows, seen in _sequences(cu_seqlens, prefix):
        queries, grads = _heads(q[rows]), _heads(grad_out[rows])  # [Hq, n, D]
        keys, values = _heads(k[seen], groups), _heads(v[seen], groups)  # [Hq, m, D]
        p = (_scores(queries, keys, scale) - lse[:, rows, None]).exp()  # [Hq, n, m]
        delta = (grads * _heads(out[rows])).sum(-1, keepdim=True)
        ds = p * (grads @ values.mT - delta) * scale
        dq[rows] = (ds @ keys).transpose(0, 1).to(q.dtype)
        dk[seen] += _per_key_head(ds.mT @ queries, groups)
        dv[seen] += _per_key_head(p.mT @ grads, groups)
    return dq, dk.to(k.dtype), dv.to(v.dtype)


def _sequences(cu_seqlens: Tensor, prefix: Tensor | None) -> Iterator[tuple[slice, slice | Tensor]]:
    """Of each sequence: its rows, and those of the keys that its last one sees."""
    bounds = [slice(*pair) for pair in pairwise(cu_seqlens.tolist())]
    before = [-1] * len(bounds) if prefix is None else prefix.tolist()
    for rows, shared in zip(bounds, before, strict=True):
        if rows.start == rows.stop:
            continue
        if shared < 0:
            yield rows, rows
        else:
            parts = (bounds[shared], rows)
            yield rows, torch.cat([torch.arange(part.start, part.stop) for part in parts])


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _heads(x: Tensor, groups: int = 1) -> Tensor:
    """[n, heads, D] as [heads · groups, n, D]."""
    return _wide(x).transpose(0, 1).repeat_interleave(groups, 0)


def _per_key_head(x: Tensor, groups: int) -> Tensor:
    """[Hq, n, D] summed over the query heads of each key head: [n, Hkv, D]."""
    return x.unflatten(0, (-1, groups)).sum(1).transpose(0, 1)


def _scores(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """Scaled scores [Hq, n, m]; the last query sees all m keys, the one before it m - 1."""
    queries, keys = q.shape[1], k.shape[1]
    future = torch.ones(queries, keys, dtype=torch.bool, device=q.device)
    return (q @ k.mT * scale).masked_fill(future.triu(1 + keys - queries), -torch.inf)
