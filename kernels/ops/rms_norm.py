"""RMS norm over the last dimension, with the residual addition before it."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import dispatch
from kernels.ops.checks import as_rows, deciding_dtype, require_shape, shaped
from kernels.ops.eager import eager_op


def rms_norm(
    x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """weight · x / sqrt(mean(x²) + eps) over the last dimension (arXiv 1910.07467).

    x [..., H], weight [H]. With `residual` (shape of x) the norm is that of x + residual and the
    result is (y, x + residual). Statistics are in float32 (float64 for float64). As in
    transformers' Qwen2 and Llama, the normalised value is rounded to the dtype of x + residual
    before it meets the weight. Mixed dtypes promote as in torch arithmetic: under autocast a
    bfloat16 update meets a float32 residual. Differentiable in x, weight and residual, once; the
    weight's gradient is summed in float32, in an order that does not depend on the number of
    threads, and cast once. Raises ValueError for shapes that do not fit.
    """
    require_shape("weight", weight, (x.shape[-1],))
    if residual is None:
        return _forward_op(x, weight, eps, None)[0]
    require_shape("residual", residual, tuple(x.shape))
    y, total, _ = _forward_op(x, weight, eps, residual)
    return y, total


@eager_op("lcpo::rms_norm")
def _forward_op(
    x: Tensor, weight: Tensor, eps: float, residual: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """(y, total = x + residual or no rows without one, rstd [T]), T rows of x flattened."""
    run = dispatch.select("rms_norm", x.device, deciding_dtype(x, weight, residual))
    y, total, rstd = run(as_rows(x), weight, eps, None if residual is None else as_rows(residual))
    return shaped(y, x.shape), total if residual is None else shaped(total, x.shape), rstd


@_forward_op.register_fake
def _(x, weight, eps, residual):
    width = x.shape[-1]
    dtype = x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return (
        x.new_empty(x.shape, dtype=torch.promote_types(dtype, weight.dtype)),
        x.new_empty((0, width) if residual is None else x.shape, dtype=dtype),
        x.new_empty(x.numel() // width, dtype=wide),
    )


@eager_op("lcpo::rms_norm_backward")
def _backward_op(
    grad_y: Tensor, grad_total: Tensor | None, total: Tensor, weight: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor]:
    """(d_x, which serves x and residual alike, in total's dtype; d_weight)."""
    run = dispatch.select("rms_norm_backward", total.device, deciding_dtype(total, weight))
    grad_total = None if grad_total is None else as_rows(grad_total)
    d_x, d_weight = run(as_rows(grad_y), grad_total, as_rows(total), weight, rstd)
    return shaped(d_x, total.shape), d_weight


@_backward_op.register_fake
def _(grad_y, grad_total, total, weight, rstd):
    return total.new_empty(total.shape), weight.new_empty(weight.shape)


def _setup_context(ctx, inputs, output) -> None:
    x, weight, _, residual = inputs
    _, total, rstd = output
    ctx.mark_non_differentiable(rstd)
    ctx.set_materialize_grads(False)
    ctx.dtypes = (x.dtype, None if residual is None else residual.dtype)
    ctx.save_for_backward(x if residual is None else total, weight, rstd)


def _backward(ctx, grad_y, grad_total, _grad_rstd):
    total, weight, rstd = ctx.saved_tensors
    x_dtype, residual_dtype = ctx.dtypes
    if residual_dtype is None:
        grad_total = None
    if grad_y is None:
        d_x, d_weight = grad_total, None
    else:
        d_x, d_weight = _backward_op(grad_y, grad_total, total, weight, rstd)
    if d_x is None or residual_dtype is None:
        return d_x, d_weight, None, None
    return d_x.to(x_dtype), d_weight, None, d_x.to(residual_dtype)


_forward_op.register_autograd(_backward, setup_context=_setup_context)
