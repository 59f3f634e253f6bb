"""Rotary position embedding of queries and keys."""

from __future__ import annotations

from torch import Tensor

from kernels import dispatch
from kernels.ops.checks import require_dtype, require_shape
from kernels.ops.eager import eager_op


def rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate q [T, Hq, D] and k [T, Hkv, D], of one dtype, by the angles of their positions.

    cos, sin [T, D/2], one angle for each pair (x_i, x_{i + D/2}): the `rotate_half` convention of
    transformers (arXiv 2104.09864), with cos and sin rounded to the dtype of q as there. The
    results are dense. Differentiable in q and k: the gradient is the rotation by the opposite
    angles. Raises ValueError for shapes or dtypes that do not fit.
    """
    tokens, _, size = q.shape
    require_shape("k", k, (tokens, None, size))
    require_dtype("k", k, q.dtype)
    require_shape("cos", cos, (tokens, size // 2))
    require_shape("sin", sin, (tokens, size // 2))
    return _op(q, k, cos, sin)


@eager_op("lcpo::rope")
def _op(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    return dispatch.select("rope", q.device, q.dtype)(q, k, cos, sin)


@_op.register_fake
def _(q, k, cos, sin):
    return q.new_empty(q.shape), k.new_empty(k.shape)


def _setup_context(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[2:])


def _backward(ctx, grad_q, grad_k):
    cos, sin = ctx.saved_tensors
    return *_op(grad_q, grad_k, cos, -sin), None, None


_op.register_autograd(_backward, setup_context=_setup_context)
