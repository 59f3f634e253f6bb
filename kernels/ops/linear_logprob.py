"""Per-token log-probability and entropy from hidden states, under a linear head."""

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


def linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    temperature: float,
    vocab_size: int | None = None,
    chunk_tokens: int = 4096,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy of each row under softmax(hidden · weightᵀ / T).

    hidden [R, H] and weight [V, H] share float32, bfloat16 or float64; targets int64 [R]. Returns
    (logprob, entropy), [R] each, in nats, float32 (float64 for float64). The logits are divided by
    the temperature in float32, for both outputs. Columns from vocab_size on (padded vocabulary
    rows) have probability 0. Differentiable in hidden and weight through both outputs, once.
    R = 0 is allowed. Under autocast the products run in autocast's dtype and float32 master
    weights keep a float32 gradient.

    No [R, V] tensor is held whole: tiles of at most `chunk_tokens` rows are recomputed in the
    backward pass. Gradients are summed in float32 and cast once.
    Raises ValueError for shapes or dtypes that do not fit and, on the CPU, for a target outside
    [0, vocab_size).
    """
    vocab_size, gemm_dtype = require_head(
        hidden, weight, targets, temperature, vocab_size, chunk_tokens
    )
    logprob, entropy, _ = _forward_op(
        hidden, weight, targets, float(temperature), vocab_size, chunk_tokens, gemm_dtype
    )
    return logprob, entropy


def require_head(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    temperature: float,
    vocab_size: int | None,
    chunk_tokens: int,
) -> tuple[int, torch.dtype]:
    """The checks of linear_logprob; returns vocab_size, and the dtype that the products take."""
    require_shape("hidden", hidden, (None, None))
    require_shape("weight", weight, (None, hidden.shape[1]))
    require_shape("targets", targets, (hidden.shape[0],))
    require_dtype("targets", targets, torch.int64)
    require_temperature(temperature)
    vocab_size = vocabulary(vocab_size, weight.shape[0])
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens must be at least 1, got {chunk_tokens}")
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        return vocab_size, torch.get_autocast_dtype(device)
    require_dtype("hidden", hidden, torch.float32, torch.bfloat16, torch.float64)
    require_dtype("weight", weight, hidden.dtype)
    return vocab_size, hidden.dtype


@torch.library.custom_op("lcpo::linear_logprob", mutates_args=())
def _forward_op(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    temperature: float,
    vocab_size: int,
    chunk_tokens: int,
    gemm_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """(logprob [R], entropy [R], stats [R, 3] for the backward pass)."""
    require_range("targets", targets, 0, vocab_size)
    run = dispatch.select("linear_logprob", hidden.device, gemm_dtype)
    return run(hidden, weight, targets, temperature, vocab_size, chunk_tokens, gemm_dtype)


@_forward_op.register_fake
def _(hidden, weight, targets, temperature, vocab_size, chunk_tokens, gemm_dtype):
    dtype = torch.float64 if gemm_dtype == torch.float64 else torch.float32
    rows = hidden.shape[0]
    return tuple(hidden.new_empty(shape, dtype=dtype) for shape in ((rows,), (rows,), (rows, 3)))


@torch.library.custom_op("lcpo::linear_logprob_backward", mutates_args=())
def _backward_op(
    grad_logprob: Tensor | None,
    grad_entropy: Tensor | None,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    stats: Tensor,
    temperature: float,
    vocab_size: int,
    chunk_tokens: int,
    gemm_dtype: torch.dtype,
    need_hidden: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor]:
    """(d_hidden [R, H], d_weight [V, H]), each with no rows when it is not needed."""
    run = dispatch.select("linear_logprob_backward", hidden.device, gemm_dtype)
    # A backward pass inside the caller's autocast must not round the float32 sum over chunks.
    with torch.autocast(hidden.device.type, enabled=False):
        return run(
            grad_logprob,
            grad_entropy,
            hidden,
            weight,
            targets,
            stats,
            temperature,
            vocab_size,
            chunk_tokens,
            gemm_dtype,
            need_hidden,
            need_weight,
        )


@_backward_op.register_fake
def _(grad_logprob, grad_entropy, hidden, weight, *rest):
    need_hidden, need_weight = rest[-2:]
    return (
        hidden.new_empty(hidden.shape if need_hidden else (0, hidden.shape[1])),
        weight.new_empty(weight.shape if need_weight else (0, weight.shape[1])),
    )


def _setup_context(ctx, inputs, output) -> None:
    hidden, weight, targets, *ctx.settings = inputs
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)  # an unused output then costs nothing in the backward pass
    ctx.save_for_backward(hidden, weight, targets, output[2])


def _backward(ctx, grad_logprob, grad_entropy, _grad_stats):
    if grad_logprob is None and grad_entropy is None:
        return (None,) * 7
    need_hidden, need_weight = ctx.needs_input_grad[:2]
    d_hidden, d_weight = _backward_op(
        grad_logprob, grad_entropy, *ctx.saved_tensors, *ctx.settings, need_hidden, need_weight
    )
    return (
        d_hidden if need_hidden else None,
        d_weight if need_weight else None,
        *(None,) * 5,
    )


_forward_op.register_autograd(_backward, setup_context=_setup_context)
