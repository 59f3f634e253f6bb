"""Causal attention over packed sequences: training and prefill."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import dispatch
from kernels.ops.checks import (
    autocast,
    require_cu_seqlens,
    require_dtype,
    require_groups,
    require_shape,
)


def varlen_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    *,
    scale: float,
    prefix: Tensor | None = None,
) -> Tensor:
    """softmax(scale · q kᵀ + causal mask) v of each packed sequence by itself; [T, Hq, D].

    q [T, Hq, D]; k, v [T, Hkv, D], Hq a multiple of Hkv (query head h reads key head
    h // (Hq / Hkv)), of one float dtype; under autocast all are cast to its dtype, as norms of q
    and k leave them in float32. cu_seqlens int32 [B + 1] from 0 to T, on the CPU or with q; empty
    sequences are allowed. No sequence may be longer than max_seqlen. Differentiable in q, k and v,
    once. What one sequence holds cannot change a bit of another's output or gradient.

    `prefix` int32 [B] on the CPU, as cu_seqlens is then: the sequence whose keys come before
    sequence b's own, all of them seen, or -1. It does not fall, so those with -1 come first; only
    they can be prefixes. K responses to a prompt then need one copy of its keys and values; in the
    C++ kernels the outputs are bit for bit those with a copy each.

    No [T, T] tensor is held: the backward pass recomputes the scores from the saved log-sum-exp of
    each row (FlashAttention-2, arXiv 2307.08691). In bfloat16 the compiled backends round
    probabilities and gradients of scores to it where they are factors of a product; sums and the
    softmax are float32. Raises ValueError for shapes or dtypes that do
    not fit and, where cu_seqlens is on the CPU, for its values.
    """
    require_shape("q", q, (None, None, None))
    tokens, heads, size = q.shape
    require_shape("k", k, (tokens, None, size))
    require_shape("v", v, tuple(k.shape))
    require_groups(heads, k.shape[1])
    q, k, v = autocast(q, k, v)
    require_dtype("k", k, q.dtype)
    require_dtype("v", v, q.dtype)
    return _forward_op(q, k, v, cu_seqlens, max_seqlen, float(scale), prefix)[0]


def require_prefix(prefix: Tensor, cu_seqlens: Tensor) -> None:
    """ValueError unless prefix is int32 [B] and says what varlen_attention's contract asks."""
    require_dtype("prefix", prefix, torch.int32)
    require_shape("prefix", prefix, (cu_seqlens.shape[0] - 1,))
    values = prefix.tolist()
    alone = values.count(-1)
    if values != sorted(values) or not all(-1 <= before < alone for before in values):
        raise ValueError(
            f"prefix must not fall and hold -1 or one of the {alone} sequences that have -1, got "
            f"{values[:8]}"
        )


def _lse_dtype(q: Tensor) -> torch.dtype:
    return torch.float64 if q.dtype == torch.float64 else torch.float32


@torch.library.custom_op("lcpo::varlen_attention", mutates_args=())
def _forward_op(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    scale: float,
    prefix: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(out [T, Hq, D], lse [Hq, T] of the scaled scores, in float32 or float64)."""
    require_cu_seqlens(cu_seqlens, q.shape[0])
    if prefix is not None:
        require_prefix(prefix, cu_seqlens)
    if cu_seqlens.device.type == "cpu" and cu_seqlens.shape[0] > 1:
        longest = int(cu_seqlens.diff().amax())
        if longest > max_seqlen:
            raise ValueError(f"a sequence of {longest} tokens exceeds max_seqlen={max_seqlen}")
    if q.shape[0] == 0:
        return q.new_empty(q.shape), q.new_empty((q.shape[1], 0), dtype=_lse_dtype(q))
    run = dispatch.select("varlen_attention", q.device, q.dtype)
    return run(q, k, v, cu_seqlens, max_seqlen, scale, prefix)


@_forward_op.register_fake
def _(q, k, v, *rest):
    tokens, heads, _ = q.shape
    return q.new_empty(q.shape), q.new_empty((heads, tokens), dtype=_lse_dtype(q))


@torch.library.custom_op("lcpo::varlen_attention_backward", mutates_args=())
def _backward_op(
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
    """(dq, dk, dv), dense."""
    if q.shape[0] == 0:
        return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)
    run = dispatch.select("varlen_attention_backward", q.device, q.dtype)
    with torch.autocast(q.device.type, enabled=False):  # a caller's may surround the backward pass
        return run(grad_out, q, k, v, out, lse, cu_seqlens, max_seqlen, scale, prefix)


@_backward_op.register_fake
def _(grad_out, q, k, v, *rest):
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _setup_context(ctx, inputs, output) -> None:
    q, k, v, cu_seqlens, *ctx.settings, prefix = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(q, k, v, *output, cu_seqlens, prefix)


def _backward(ctx, grad_out, _grad_lse):
    *tensors, prefix = ctx.saved_tensors
    return *_backward_op(grad_out, *tensors, *ctx.settings, prefix), *(None,) * 4


_forward_op.register_autograd(_backward, setup_context=_setup_context)
