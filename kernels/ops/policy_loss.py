"""The clipped policy loss over response tokens, with KL and entropy terms."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kernels import dispatch
from kernels.ops.checks import require_dtype, require_range, require_shape

KL_GRADS = ("k3", "corrected")


class PolicyStats(NamedTuple):
    """Scalars on the device, of tokens with a weight; no gradient. Sums are plain, not weighted."""

    clip_count: Tensor  # tokens whose clipped term is the larger loss
    ratio_max_dev: Tensor  # max |ratio − 1|
    kl_sum: Tensor  # k3 of policy against reference, nats
    old_kl_sum: Tensor  # k3 of the old policy against the new one, nats
    entropy_sum: Tensor  # nats
    tokens: Tensor


def policy_loss(
    logprob: Tensor,
    old: Tensor,
    ref: Tensor | None,
    entropy: Tensor | None,
    advantage: Tensor,
    seq_weight: Tensor,
    seq_ids: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    kl_coef: float,
    kl_grad: str,
    entropy_coef: float,
) -> tuple[Tensor, PolicyStats]:
    """Weighted sum over R response tokens; returns (loss float32 [], PolicyStats).

    loss = Σ_t w_s(t) · ( max(−ratio·A, −clip(ratio, 1 − clip_low, 1 + clip_high)·A)
                          + kl_coef · k3_t − entropy_coef · entropy_t )
    with ratio = exp(clamp(logprob − old, ±20)), k3 = exp(d) − d − 1, d = clamp(ref − logprob, ±10)
    (PPO, arXiv 1707.06347; k3, Schulman 2020, as GRPO has it, arXiv 2402.03300, eq. 4).

    logprob, old, ref, entropy: float32 [R]; ref and entropy may be None when their coefficient is
    0. advantage, seq_weight: float32 [B]; seq_ids: int32 [R], sequence of each token. A token
    whose sequence weighs 0 adds nothing, whatever it holds. Differentiable in logprob and entropy.

    kl_grad "k3" differentiates k3 as it stands, as L1's code does; on samples of the policy that
    is the gradient of the *forward* KL. "corrected" reports the same value, with the gradient of
    ratio · k3, which is ratio · (logprob − ref): an unbiased gradient of KL(policy ‖ reference)
    per token (DeepSeek-V3.2, arXiv 2512.02556, eq. 7). Beyond a clamp k3's gradient is 0, as
    autograd has it; the corrected one stays at its bound.

    R = 0 gives loss 0 with a gradient path. Raises ValueError for arguments that do not fit.
    """
    rows = logprob.shape[0]
    for name, tensor in (("logprob", logprob), ("entropy", entropy)):
        if tensor is not None:
            require_shape(name, tensor, (rows,))
            require_dtype(name, tensor, torch.float32)
    require_policy(rows, old, ref, advantage, seq_weight, seq_ids, kl_coef=kl_coef, kl_grad=kl_grad)
    if entropy is None and entropy_coef != 0:
        raise ValueError(f"entropy_coef={entropy_coef} needs the entropy, got None")
    loss, _, _, stats = _op(
        logprob,
        old,
        ref,
        entropy,
        advantage,
        seq_weight,
        seq_ids,
        float(clip_low),
        float(clip_high),
        float(kl_coef),
        kl_grad,
        float(entropy_coef),
    )
    return loss, PolicyStats(*stats.unbind())


def require_policy(
    rows: int,
    old: Tensor | None,
    ref: Tensor | None,
    advantage: Tensor,
    seq_weight: Tensor,
    seq_ids: Tensor,
    *,
    kl_coef: float,
    kl_grad: str,
) -> None:
    """The checks of policy_loss on all but what comes from the policy itself."""
    sequences = advantage.shape[0]
    for name, tensor, size in (
        ("old", old, rows),
        ("ref", ref, rows),
        ("advantage", advantage, sequences),
        ("seq_weight", seq_weight, sequences),
    ):
        if tensor is not None:
            require_shape(name, tensor, (size,))
            require_dtype(name, tensor, torch.float32)
    require_shape("seq_ids", seq_ids, (rows,))
    require_dtype("seq_ids", seq_ids, torch.int32)
    if kl_grad not in KL_GRADS:
        raise ValueError(f"unknown kl_grad {kl_grad!r}; there are {KL_GRADS}")
    if ref is None and kl_coef != 0:
        raise ValueError(f"kl_coef={kl_coef} needs reference log-probs, got None")


@torch.library.custom_op("lcpo::policy_loss", mutates_args=())
def _op(
    logprob: Tensor,
    old: Tensor,
    ref: Tensor | None,
    entropy: Tensor | None,
    advantage: Tensor,
    seq_weight: Tensor,
    seq_ids: Tensor,
    clip_low: float,
    clip_high: float,
    kl_coef: float,
    kl_grad: str,
    entropy_coef: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(loss [], d loss/d logprob [R], d loss/d entropy [R], stats [6])."""
    require_range("seq_ids", seq_ids, 0, advantage.shape[0])
    run = dispatch.select("policy_loss", logprob.device, logprob.dtype)
    return run(
        logprob,
        old,
        ref,
        entropy,
        advantage,
        seq_weight,
        seq_ids,
        clip_low,
        clip_high,
        kl_coef,
        kl_grad,
        entropy_coef,
    )


@_op.register_fake
def _(logprob, *rest):
    return (
        logprob.new_empty(()),
        torch.empty_like(logprob),
        torch.empty_like(logprob),
        logprob.new_empty((len(PolicyStats._fields),)),
    )


def _setup_context(ctx, inputs, output) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.has_entropy = inputs[3] is not None and inputs[-1] != 0
    ctx.save_for_backward(output[1], output[2])


def _backward(ctx, grad_loss, *_):
    if grad_loss is None:
        return (None,) * 12
    d_logprob, d_entropy = ctx.saved_tensors
    # No entropy term: None, so that the op before need not carry zeros through the vocabulary.
    grad_entropy = grad_loss * d_entropy if ctx.has_entropy else None
    return grad_loss * d_logprob, None, None, grad_entropy, *(None,) * 8


_op.register_autograd(_backward, setup_context=_setup_context)
