"""A decoder layer but for its attention, in two halves, and their gradients, fused for training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kernels import dispatch
from kernels.ops.checks import require_dtype, require_shape
from kernels.ops.packed_decoder import Linear

# Shape letters: T tokens, H hidden size, D head size, Hq and Hkv heads, I intermediate size.


class BeforeAttention(NamedTuple):
    """Weights between the sum that enters a layer and its queries, keys and values."""

    norm: Tensor  # [H]
    eps: float
    q: Linear  # [Hq · D, H]
    k: Linear  # [Hkv · D, H]
    v: Linear
    head_dim: int  # D


class AfterAttention(NamedTuple):
    """Weights between the attention's output and that of the layer."""

    norm: Tensor  # [H]
    eps: float
    o: Linear  # [H, Hq · D]
    gate: Linear  # [I, H]
    up: Linear
    down: Linear  # [H, I]


class WeightSum(NamedTuple):
    """Where the gradient of a linear layer's weight goes."""

    out: Tensor  # [out, in], dense; float32, or float64 where the layer is
    add: bool  # to what is there


class BeforeGradients(NamedTuple):
    """What is not a weight's gradient."""

    d_x: Tensor  # [T, H], of update and residual alike
    d_norm: Tensor  # [H]
    biases: tuple[Tensor | None, ...]  # of q, k and v


class AfterGradients(NamedTuple):
    """What is not a weight's gradient."""

    d_x: Tensor  # [T, H], of the residual
    d_attended: Tensor  # [T, Hq · D]
    d_norm: Tensor  # [H]
    biases: tuple[Tensor | None, ...]  # of o, gate, up and down


def can_halve(before: BeforeAttention, after: AfterAttention) -> bool:
    """Whether the fused kernels take such a layer; the ops one by one do what they do.

    bfloat16 on CPUs that multiply it, but not by AMX tiles, with the compiled library; even sizes.
    """
    linear = (x.weight for x in (*before, *after) if isinstance(x, Linear))
    if any(size % 2 for weight in linear for size in weight.shape) or before.head_dim % 2:
        return False
    weight = before.norm
    ops = ("before_attention", "after_attention", "rms_norm", "rope", "swiglu")
    return all(
        dispatch.select(op, weight.device, weight.dtype) is dispatch.IMPLEMENTATIONS[op].get("cpp")
        for op in ops
    )


def before_attention(
    layer: BeforeAttention, update: Tensor, residual: Tensor | None, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(total [T, H], q [T, Hq, D], k, v [T, Hkv, D]), no gradient.

    total = update + residual, both [T, H], or `update` itself without a residual; its RMS norm goes
    through the linear layers q, k and v, and q and k are rotated: see rms_norm and rope, which say
    what is rounded. cos, sin float32 [T, D / 2]; all else is of one dtype. The bits of a token
    depend on nothing else. Raises ValueError for shapes or dtypes that do not fit.
    """
    _require_layer(layer, (("update", update), ("residual", residual)))
    _require_angles(update.shape[0], layer.head_dim, cos, sin)
    return _run("before_attention", update)(layer, update, residual, cos, sin)


def before_attention_backward(
    layer: BeforeAttention,
    total: Tensor,
    cos: Tensor,
    sin: Tensor,
    d_total: Tensor | None,
    d_q: Tensor,
    d_k: Tensor,
    d_v: Tensor,
    sums: Sequence[WeightSum],
) -> BeforeGradients:
    """Gradients of what before_attention has given, given those of its outputs.

    d_total [T, H] may be missing. Gradients of the weights of q, k and v go to `sums` and are not
    rounded; that of the norm's result is summed over the three in float32 and rounded once; d_norm
    is as in rms_norm, and so are the biases'. Nothing depends on the number of threads. Raises
    ValueError as before_attention.
    """
    _require_layer(layer, (("total", total), ("d_total", d_total)))
    _require_angles(total.shape[0], layer.head_dim, cos, sin)
    for name, x, linear in (("d_q", d_q, layer.q), ("d_k", d_k, layer.k), ("d_v", d_v, layer.v)):
        heads = linear.weight.shape[0] // layer.head_dim
        require_shape(name, x, (total.shape[0], heads, layer.head_dim))
        require_dtype(name, x, total.dtype)
    _require_sums(sums, (layer.q, layer.k, layer.v))
    run = _run("before_attention_backward", total)
    return BeforeGradients(*run(layer, total, cos, sin, d_total, d_q, d_k, d_v, sums))


def after_attention(
    layer: AfterAttention, attended: Tensor, residual: Tensor, *, keep: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """(update [T, H], total [T, H], gate and up [T, I], or None unless `keep`), no gradient.

    total = residual [T, H] + o(attended [T, Hq · D]); its RMS norm goes through gate and up,
    and update = down(swiglu(gate, up)). Else as before_attention.
    """
    _require_layer(layer, (("residual", residual),))
    require_shape("attended", attended, (residual.shape[0], layer.o.weight.shape[1]))
    require_dtype("attended", attended, residual.dtype)
    return _run("after_attention", residual)(layer, attended, residual, keep=keep)


def after_attention_backward(
    layer: AfterAttention,
    attended: Tensor,
    total: Tensor,
    gate: Tensor,
    up: Tensor,
    d_update: Tensor,
    d_total: Tensor | None,
    sums: Sequence[WeightSum],
) -> AfterGradients:
    """Gradients of what after_attention has given; see before_attention_backward.

    `sums` are those of o, gate, up and down.
    """
    states = (("total", total), ("d_update", d_update), ("d_total", d_total))
    _require_layer(layer, states)
    tokens = total.shape[0]
    for name, x, width in (
        ("attended", attended, layer.o.weight.shape[1]),
        ("gate", gate, layer.gate.weight.shape[0]),
        ("up", up, layer.gate.weight.shape[0]),
    ):
        require_shape(name, x, (tokens, width))
        require_dtype(name, x, total.dtype)
    _require_sums(sums, (layer.o, layer.gate, layer.up, layer.down))
    run = _run("after_attention_backward", total)
    return AfterGradients(*run(layer, attended, total, gate, up, d_update, d_total, sums))


def _run(op: str, x: Tensor) -> Callable:
    return dispatch.select(op, x.device, x.dtype)


def _require_layer(
    layer: BeforeAttention | AfterAttention, states: tuple[tuple[str, Tensor | None], ...]
) -> None:
    """ValueError unless the weights fit together and `states` [T, H] fit them."""
    hidden, dtype = layer.norm.shape[0], layer.norm.dtype
    if isinstance(layer, BeforeAttention):
        shapes = {"q": (None, hidden), "k": (None, hidden)}
        shapes["v"] = (layer.k.weight.shape[0], hidden)
    else:
        inner = layer.gate.weight.shape[0]
        shapes = {"o": (hidden, None), "gate": (None, hidden)}
        shapes |= {"up": (inner, hidden), "down": (hidden, inner)}
    for name, shape in shapes.items():
        weight, bias = getattr(layer, name)
        require_shape(name, weight, shape)
        require_dtype(name, weight, dtype)
        if bias is not None:
            require_shape(f"bias of {name}", bias, weight.shape[:1])
            require_dtype(f"bias of {name}", bias, dtype)
    tokens = states[0][1].shape[0]
    for name, x in states:
        if x is not None:
            require_shape(name, x, (tokens, hidden))
            require_dtype(name, x, dtype)


def _require_angles(tokens: int, head_dim: int, cos: Tensor, sin: Tensor) -> None:
    for name, x in (("cos", cos), ("sin", sin)):
        require_shape(name, x, (tokens, head_dim // 2))
        require_dtype(name, x, torch.float32)


def _require_sums(sums: Sequence[WeightSum], linear: Sequence[Linear]) -> None:
    for (out, _), (weight, _) in zip(sums, linear, strict=True):
        require_shape("a weight's sum", out, tuple(weight.shape))
        require_dtype("a weight's sum", out, torch.promote_types(weight.dtype, torch.float32))
        if not out.is_contiguous():
            raise ValueError("a weight's sum must be dense: it is written in place")
