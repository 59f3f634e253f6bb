"""A linear layer whose rows do not depend on each other, down to the bits."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kernels import dispatch
from kernels.ops.checks import require_dtype, require_shape
from kernels.ops.eager import eager_op


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x · weightᵀ + bias [T, out]: x [T, in], weight [out, in], bias [out], of one dtype.

    In float32 on the CPU, with the compiled library, it is the product of PackedDecoder: a row has
    the same bits whatever other rows there are, and whatever the number of threads. A vendor GEMM,
    which takes all else, and the gradients, picks its inner loops by the number of rows.
    Differentiable in all three, once. Raises ValueError for shapes or dtypes that differ.
    """
    require_shape("x", x, (None, None))
    require_shape("weight", weight, (None, x.shape[1]))
    require_dtype("weight", weight, x.dtype)
    if bias is not None:
        require_shape("bias", bias, (weight.shape[0],))
        require_dtype("bias", bias, x.dtype)
    if dispatch.select("linear", x.device, x.dtype) is F.linear:
        return F.linear(x, weight, bias)  # nothing of ours: whoever traces sees torch's op
    return _forward_op(x, weight, bias)


@eager_op("lcpo::linear")
def _forward_op(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return dispatch.select("linear", x.device, x.dtype)(x, weight, bias)


@_forward_op.register_fake
def _(x, weight, bias):
    return x.new_empty(x.shape[0], weight.shape[0])


def _setup_context(ctx, inputs, output) -> None:
    x, weight, _ = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx, grad):
    x, weight = ctx.saved_tensors
    need_x, need_weight, need_bias = ctx.needs_input_grad
    return (
        grad @ weight if need_x else None,
        grad.t() @ x if need_weight else None,
        grad.sum(0) if need_bias else None,
    )


_forward_op.register_autograd(_backward, setup_context=_setup_context)
