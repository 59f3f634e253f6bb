"""Per-token log-probability and entropy from logits: a selective log-softmax."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import dispatch
from kernels.ops.checks import (
    require_dtype,
    require_range,
    require_shape,
    require_temperature,
    vocabulary,
)
from kernels.ops.eager import eager_op


def logprob_from_logits(
    logits: Tensor, targets: Tensor, *, temperature: float, vocab_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy of each row under softmax(logits / T).

    logits [R, V] of any float dtype, rows may be strided; targets int64 [R]. Returns (logprob,
    entropy), [R] each, in nats, float32 (float64 for float64). Columns from vocab_size on have
    probability 0, and gradient 0. Differentiable in logits through both outputs, once: with
    z = logits / T and entropy = lse(z) − E[z],
    dlogits_j = [g_logp (δ_j − p_j) + g_ent p_j (E[z] − z_j)] / T, in the dtype of logits.
    Raises ValueError for shapes or dtypes that do not fit and, on the CPU, for a target outside
    [0, vocab_size).
    """
    require_shape("logits", logits, (None, None))
    require_shape("targets", targets, (logits.shape[0],))
    require_dtype("targets", targets, torch.int64)
    require_temperature(temperature)
    vocab_size = vocabulary(vocab_size, logits.shape[1])
    logprob, entropy, _ = _forward_op(logits, targets, float(temperature), vocab_size)
    return logprob, entropy


@eager_op("lcpo::logprob_from_logits")
def _forward_op(
    logits: Tensor, targets: Tensor, temperature: float, vocab_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(logprob [R], entropy [R], stats [R, 3] for the backward pass)."""
    require_range("targets", targets, 0, vocab_size)
    run = dispatch.select("logprob_from_logits", logits.device, logits.dtype)
    return run(logits, targets, temperature, vocab_size)


@_forward_op.register_fake
def _(logits, targets, temperature, vocab_size):
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    rows = logits.shape[0]
    return tuple(logits.new_empty(shape, dtype=dtype) for shape in ((rows,), (rows,), (rows, 3)))


@eager_op("lcpo::logprob_from_logits_backward")
def _backward_op(
    grad_logprob: Tensor | None,
    grad_entropy: Tensor | None,
    logits: Tensor,
    targets: Tensor,
    stats: Tensor,
    temperature: float,
    vocab_size: int,
) -> Tensor:
    """d_logits [R, V], dense."""
    run = dispatch.select("logprob_from_logits_backward", logits.device, logits.dtype)
    return run(grad_logprob, grad_entropy, logits, targets, stats, temperature, vocab_size)


@_backward_op.register_fake
def _(grad_logprob, grad_entropy, logits, *rest):
    return logits.new_empty(logits.shape)


def _setup_context(ctx, inputs, output) -> None:
    logits, targets, *ctx.settings = inputs
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)  # an unused output then costs nothing in the backward pass
    ctx.save_for_backward(logits, targets, output[2])


def _backward(ctx, grad_logprob, grad_entropy, _grad_stats):
    if grad_logprob is None and grad_entropy is None:
        return (None,) * 4
    d_logits = _backward_op(grad_logprob, grad_entropy, *ctx.saved_tensors, *ctx.settings)
    return d_logits, None, None, None


_forward_op.register_autograd(_backward, setup_context=_setup_context)
