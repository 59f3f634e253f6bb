"""The clipped policy loss straight from hidden states, its gradient made in the forward pass."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import dispatch
from kernels.ops.checks import require_dtype, require_range, require_shape
from kernels.ops.linear_logprob import require_head
from kernels.ops.policy_loss import PolicyStats, require_policy


def linear_policy_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    old: Tensor | None,
    ref: Tensor | None,
    advantage: Tensor,
    seq_weight: Tensor,
    seq_ids: Tensor,
    *,
    temperature: float,
    vocab_size: int | None = None,
    chunk_tokens: int = 4096,
    master: Tensor | None = None,
    clip_low: float,
    clip_high: float,
    kl_coef: float,
    kl_grad: str,
    entropy_coef: float,
) -> tuple[Tensor, PolicyStats, Tensor]:
    """policy_loss of the log-probs and entropies of linear_logprob, in one pass.

    hidden [R, H], weight [V, H], targets [R], temperature, vocab_size and chunk_tokens are as in
    linear_logprob, without float64; the rest is as in policy_loss. Returns what policy_loss
    returns, loss float32 [] and PolicyStats, and the log-probs float32 [R], which have no gradient.
    These have the same bits as linear_logprob's for the same rows in the same order, so the ratio
    to an `old` made by it starts at exactly 1. old=None takes them for it, which saves that pass.
    Differentiable in hidden and weight, once; the backward pass only scales. With `master` float32
    [V, H], of which `weight` is a rounded copy, the gradient by weight is master's and not rounded.

    Three products instead of four, since nothing is recomputed: a block of rows (chunk_tokens, on
    the CPU at most 512) holds its logits until their gradient is made. Products that serve a
    gradient nobody needs are left out. Raises ValueError for arguments that do not fit.
    """
    vocab_size, gemm_dtype = require_head(
        hidden, weight, targets, temperature, vocab_size, chunk_tokens
    )
    if gemm_dtype == torch.float64:
        raise ValueError("hidden is torch.float64, expected torch.float32 or torch.bfloat16")
    if master is not None:
        require_shape("master", master, tuple(weight.shape))
        require_dtype("master", master, torch.float32)
    learned = _learned(weight, master)
    require_policy(
        targets.shape[0], old, ref, advantage, seq_weight, seq_ids, kl_coef=kl_coef, kl_grad=kl_grad
    )
    wanted = torch.is_grad_enabled()
    loss, _, _, stats, logprob = _op(
        hidden,
        weight,
        master,
        targets,
        old,
        ref,
        advantage,
        seq_weight,
        seq_ids,
        float(temperature),
        vocab_size,
        chunk_tokens,
        gemm_dtype,
        float(clip_low),
        float(clip_high),
        float(kl_coef),
        kl_grad,
        float(entropy_coef),
        wanted and hidden.requires_grad,
        wanted and learned.requires_grad,
    )
    return loss, PolicyStats(*stats.unbind()), logprob


@torch.library.custom_op("lcpo::linear_policy_loss", mutates_args=())
def _op(
    hidden: Tensor,
    weight: Tensor,
    master: Tensor | None,
    targets: Tensor,
    old: Tensor | None,
    ref: Tensor | None,
    advantage: Tensor,
    seq_weight: Tensor,
    seq_ids: Tensor,
    temperature: float,
    vocab_size: int,
    chunk_tokens: int,
    gemm_dtype: torch.dtype,
    clip_low: float,
    clip_high: float,
    kl_coef: float,
    kl_grad: str,
    entropy_coef: float,
    need_hidden: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(loss [], d_hidden [R, H], d_weight [V, H], stats [6], logprob [R]).

    A gradient that is not needed has no rows.
    """
    require_range("targets", targets, 0, vocab_size)
    require_range("seq_ids", seq_ids, 0, advantage.shape[0])
    run = dispatch.select("linear_policy_loss", hidden.device, gemm_dtype)
    # The caller's autocast must not round the float32 sums.
    with torch.autocast(hidden.device.type, enabled=False):
        loss, d_hidden, d_weight, stats, logprob = run(
            hidden,
            weight,
            targets,
            old,
            ref,
            advantage,
            seq_weight,
            seq_ids,
            temperature,
            vocab_size,
            chunk_tokens,
            gemm_dtype,
            clip_low,
            clip_high,
            kl_coef,
            kl_grad,
            entropy_coef,
            need_hidden,
            need_weight,
        )
    return loss, d_hidden, d_weight.to(_learned(weight, master).dtype), stats, logprob


def _learned(weight: Tensor, master: Tensor | None) -> Tensor:
    """Whose gradient it is."""
    return weight if master is None else master


@_op.register_fake
def _(hidden, weight, master, *rest):
    need_hidden, need_weight = rest[-2:]
    learned = _learned(weight, master)
    return (
        hidden.new_empty((), dtype=torch.float32),
        hidden.new_empty(hidden.shape if need_hidden else (0, hidden.shape[1])),
        learned.new_empty(weight.shape if need_weight else (0, weight.shape[1])),
        hidden.new_empty((len(PolicyStats._fields),), dtype=torch.float32),
        hidden.new_empty(hidden.shape[:1], dtype=torch.float32),
    )


def _setup_context(ctx, inputs, output) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.needed, ctx.has_master = inputs[-2:], inputs[2] is not None
    ctx.save_for_backward(*output[1:3])


def _backward(ctx, grad_loss, *_):
    if grad_loss is None:
        return (None,) * 20
    d_hidden, d_weight = [
        _scaled(x, grad_loss) if needed else None
        for x, needed in zip(ctx.saved_tensors, ctx.needed, strict=True)
    ]
    of_weight = (None, d_weight) if ctx.has_master else (d_weight, None)
    return d_hidden, *of_weight, *(None,) * 17


def _scaled(gradient: Tensor, by: Tensor) -> Tensor:
    """gradient · by, in its dtype; `gradient` stays as it is, since a graph may be used twice.

    For loss.backward() there is nothing to do, and another copy as large as the head is not made.
    Only real CPU tensors can be asked: others would stall a device or be a compiler's stand-ins.
    """
    if type(by) is Tensor and by.device.type == "cpu" and by == 1:
        return gradient
    return (gradient * by).to(gradient.dtype)


_op.register_autograd(_backward, setup_context=_setup_context)
