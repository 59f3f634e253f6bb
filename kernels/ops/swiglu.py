"""The gate of the MLP: silu(gate) · up."""

from __future__ import annotations

from torch import Tensor

from kernels import dispatch
from kernels.ops.checks import as_rows, require_dtype, require_shape, shaped
from kernels.ops.eager import eager_op


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) · up, elementwise; [..., I] each, of one dtype (arXiv 2002.05202).

    Differentiable in both, once; nothing but gate and up is kept for that. Raises ValueError for
    shapes or dtypes that differ.
    """
    require_shape("up", up, tuple(gate.shape))
    require_dtype("up", up, gate.dtype)
    return _forward_op(gate, up)


@eager_op("lcpo::swiglu")
def _forward_op(gate: Tensor, up: Tensor) -> Tensor:
    run = dispatch.select("swiglu", gate.device, gate.dtype)
    return shaped(run(as_rows(gate), as_rows(up)), gate.shape)


@_forward_op.register_fake
def _(gate, up):
    return gate.new_empty(gate.shape)


@eager_op("lcpo::swiglu_backward")
def _backward_op(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """(d_gate, d_up), dense."""
    run = dispatch.select("swiglu_backward", gate.device, gate.dtype)
    d_gate, d_up = run(as_rows(grad), as_rows(gate), as_rows(up))
    return shaped(d_gate, gate.shape), shaped(d_up, gate.shape)


@_backward_op.register_fake
def _(grad, gate, up):
    return gate.new_empty(gate.shape), up.new_empty(up.shape)


def _setup_context(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad):
    return _backward_op(grad, *ctx.saved_tensors)


_forward_op.register_autograd(_backward, setup_context=_setup_context)
