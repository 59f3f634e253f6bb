"""varlen_attention on CUDA: flash-attn, else torch's copy of it, else SDPA by sequence.

With a prefix FlashAttention runs twice: causally within all sequences, and from those that have a
prefix to it. Two softmaxes over parts of the keys merge by their log-sum-exps. The backward pass of
either part with the merged output and log-sum-exp gives that part's share of the gradients, as
neither p = exp(s - lse) nor Σ dO · out knows of parts.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.cuda_impl.loading import flash_attn, takes


class Bounds(NamedTuple):
    """Which queries meet which keys in a call of FlashAttention."""

    queries: Tensor  # int32 [B + 1]
    keys: Tensor
    most_queries: int
    most_keys: int
    causal: bool


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    scale: float,
    prefix: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See ops.varlen_attention; (out, lse), lse of zeros from SDPA, whose backward needs none."""
    if not takes(q):
        out = _sdpa(q, k, v, cu_seqlens, scale, prefix)
        return out, q.new_zeros(q.shape[1::-1], dtype=torch.float32)
    out, lse = _flash(q, k, v, _own(cu_seqlens, max_seqlen, q.device), scale)
    if prefix is not None and prefix[-1] >= 0:
        first, bounds = _to_prefix(cu_seqlens, prefix, q.device)
        there, lse_there = _flash(q[first:], k[:first], v[:first], bounds, scale)
        total = torch.logaddexp(lse[:, first:], lse_there)  # [Hq, T']
        shares = [(x - total).exp().t()[..., None] for x in (lse[:, first:], lse_there)]
        out[first:] = (out[first:] * shares[0] + there * shares[1]).to(q.dtype)
        lse[:, first:] = total
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
    """(dq, dk, dv) from what `forward` was given and returned."""
    if not takes(q):
        with torch.enable_grad():
            leaves = [x.detach().requires_grad_() for x in (q, k, v)]
            attended = _sdpa(*leaves, cu_seqlens, scale, prefix)
            return torch.autograd.grad(attended, leaves, grad_out)
    own = _own(cu_seqlens, max_seqlen, q.device)
    dq, dk, dv = _flash_backward(grad_out, q, k, v, out, lse, own, scale)
    if prefix is not None and prefix[-1] >= 0:
        first, bounds = _to_prefix(cu_seqlens, prefix, q.device)
        there = _flash_backward(
            grad_out[first:],
            q[first:],
            k[:first],
            v[:first],
            out[first:],
            lse[:, first:],
            bounds,
            scale,
        )
        for total, rows, part in zip(
            (dq, dk, dv), (slice(first, None), *2 * [slice(first)]), there, strict=True
        ):
            total[rows] += part
    return dq, dk, dv


def _own(cu_seqlens: Tensor, max_seqlen: int, device: torch.device) -> Bounds:
    """Each sequence with itself."""
    bounds = cu_seqlens.to(device, non_blocking=True)
    return Bounds(bounds, bounds, max_seqlen, max_seqlen, True)


def _to_prefix(cu_seqlens: Tensor, prefix: Tensor, device: torch.device) -> tuple[int, Bounds]:
    """The first token behind all prefixes, and from there on each family with its prefix."""
    alone = int((prefix < 0).sum())
    lengths = cu_seqlens.diff()
    keys = cu_seqlens[: alone + 1]
    families = torch.zeros(alone, dtype=torch.int32)
    families.index_add_(0, prefix[alone:].long(), lengths[alone:])  # [alone], tokens
    queries = torch.cat([families.new_zeros(1), families.cumsum(0, dtype=torch.int32)])
    on_device = (x.to(device, non_blocking=True) for x in (queries, keys))
    most = (int(families.max()), int(lengths[:alone].max()))
    return int(keys[-1]), Bounds(*on_device, *most, False)


def _flash(q: Tensor, k: Tensor, v: Tensor, bounds: Bounds, scale: float) -> tuple[Tensor, Tensor]:
    """(out, lse)"""
    package = flash_attn()
    if package:
        out, lse, _ = package.flash_attn_varlen_func(
            q, k, v, *bounds[:4], softmax_scale=scale, causal=bounds.causal, return_attn_probs=True
        )
    else:  # what torch.nn.attention.varlen calls, in older versions too
        tensors = [x.contiguous() for x in (q, k, v)]
        out, lse, *_ = torch.ops.aten._flash_attention_forward(
            *tensors, *bounds[:4], 0.0, bounds.causal, False, scale=scale
        )
    return out, lse


def _flash_backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    bounds: Bounds,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dq, dk, dv)"""
    tensors = [x.contiguous() for x in (grad_out, q, k, v, out, lse)]
    package = flash_attn()
    if package:
        grads = tuple(torch.empty_like(x) for x in tensors[1:4])
        package._flash_attn_varlen_backward(
            *tensors,
            *grads,
            *bounds[:4],
            dropout_p=0.0,
            softmax_scale=scale,
            causal=bounds.causal,
            window_size_left=-1,
            window_size_right=-1,
            softcap=0.0,
            alibi_slopes=None,
            deterministic=True,
        )
        return grads
    no_dropout = torch.zeros(2, dtype=torch.uint64, device=q.device)
    unused = torch.empty(0, device=q.device)
    return torch.ops.aten._flash_attention_backward(
        *tensors, *bounds[:4], 0.0, bounds.causal, no_dropout, unused, scale=scale
    )


def _sdpa(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, scale: float, prefix: Tensor | None
) -> Tensor:
    bounds = [slice(*pair) for pair in pairwise(cu_seqlens.tolist())]
    before = [-1] * len(bounds) if prefix is None else prefix.tolist()
    out = [q[:0]]
    for own, shared in zip(bounds, before, strict=True):
        parts = [own] if shared < 0 else [bounds[shared], own]
        keys, values = (torch.cat([x[part] for part in parts]) for x in (k, v))
        rows = [x.transpose(0, 1)[None] for x in (q[own], keys, values)]  # [1, heads, n, D]
        queries, seen = rows[0].shape[2], rows[1].shape[2]
        mask = torch.ones(queries, seen, dtype=torch.bool, device=q.device).tril(seen - queries)
        attended = F.scaled_dot_product_attention(
            *rows, attn_mask=mask, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
        )
        out.append(attended[0].transpose(0, 1))
    return torch.cat(out)
