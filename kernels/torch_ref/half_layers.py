"""The halves of a decoder layer around its attention, of the references of their ops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from kernels.torch_ref import rms_norm, rope, swiglu


def before_attention(
    layer: Any, update: Tensor, residual: Tensor | None, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See ops.half_layers.before_attention."""
    normed, total, _ = rms_norm.forward(update, layer.norm, layer.eps, residual)
    q, k, v = (
        F.linear(normed, *linear).unflatten(-1, (-1, layer.head_dim))
        for linear in (layer.q, layer.k, layer.v)
    )
    q, k = rope.rope(q, k, cos, sin)
    return update if residual is None else total, q, k, v


def before_attention_backward(
    layer: Any,
    total: Tensor,
    cos: Tensor,
    sin: Tensor,
    d_total: Tensor | None,
    d_q: Tensor,
    d_k: Tensor,
    d_v: Tensor,
    sums: Sequence[Any],
) -> tuple[Tensor, Tensor, tuple[Tensor | None, ...]]:
    """See ops.half_layers.before_attention_backward."""
    normed, _, rstd = rms_norm.forward(total, layer.norm, layer.eps, None)
    q, k, v = (x.flatten(1) for x in (*rope.rope(d_q, d_k, cos, -sin), d_v))
    linear = (layer.q, layer.k, layer.v)
    biases = _add_weights(sums, linear, (q, k, v), (normed,) * 3)
    d_normed = q @ layer.q.weight + k @ layer.k.weight + v @ layer.v.weight
    return *rms_norm.backward(d_normed, d_total, total, layer.norm, rstd), biases


def after_attention(
    layer: Any, attended: Tensor, residual: Tensor, *, keep: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """See ops.half_layers.after_attention."""
    update = F.linear(attended, *layer.o)
    normed, total, _ = rms_norm.forward(update, layer.norm, layer.eps, residual)
    gate, up = F.linear(normed, *layer.gate), F.linear(normed, *layer.up)
    update = F.linear(swiglu.forward(gate, up), *layer.down)
    return (update, total, gate, up) if keep else (update, total, None, None)


def after_attention_backward(
    layer: Any,
    attended: Tensor,
    total: Tensor,
    gate: Tensor,
    up: Tensor,
    d_update: Tensor,
    d_total: Tensor | None,
    sums: Sequence[Any],
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor | None, ...]]:
    """See ops.half_layers.after_attention_backward."""
    normed, _, rstd = rms_norm.forward(total, layer.norm, layer.eps, None)
    d_gate, d_up = swiglu.backward(d_update @ layer.down.weight, gate, up)
    d_normed = d_gate @ layer.gate.weight + d_up @ layer.up.weight
    d_x, d_norm = rms_norm.backward(d_normed, d_total, total, layer.norm, rstd)
    linear = (layer.o, layer.gate, layer.up, layer.down)
    inputs = (attended, normed, normed, swiglu.forward(gate, up))
    biases = _add_weights(sums, linear, (d_x, d_gate, d_up, d_update), inputs)
    return d_x, d_x @ layer.o.weight, d_norm, biases


def _add_weights(
    sums: Sequence[Any],
    linear: Sequence[Any],
    d_outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
) -> tuple[Tensor | None, ...]:
    """Adds the weights' gradients to `sums`, in their dtype; the biases' gradients."""
    for (out, add), d, x in zip(sums, d_outputs, inputs, strict=True):
        gradient = d.to(out.dtype).t() @ x.to(out.dtype)
        out.copy_(out + gradient if add else gradient)
    return tuple(
        None if bias is None else d.sum(0) for (_, bias), d in zip(linear, d_outputs, strict=True)
    )
