"""The token policy loss with its gradient made in the forward pass."""

from __future__ import annotations

import torch
from torch import Tensor

LOG_RATIO_LIMIT = 20.0  # exp(20) is finite in float32 and in a sum over 2**20 tokens
KL_LIMIT = 10.0  # of L1's public code
STATS, RATIO_MAX_DEV = 6, 1  # how many, and the index of the one that is no sum


def policy_loss(
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
    """(loss [], d loss/d logprob [R], d loss/d entropy [R], stats [6]); see ops.policy_loss.

    stats in the order of PolicyStats. `where` and never a product with a mask: inf · 0 is NaN.
    """
    row = seq_ids.long()
    a, w = advantage[row], seq_weight[row]  # [R]
    live = w != 0

    def clamped(x: Tensor, limit: float) -> tuple[Tensor, Tensor]:
        """x within ±limit, and where its derivative is 1."""
        return x.clamp(-limit, limit), x.abs() <= limit

    log_ratio, ratio_moves = clamped(logprob - old, LOG_RATIO_LIMIT)
    ratio = log_ratio.exp()
    free, cut = -ratio * a, -ratio.clamp(1 - clip_low, 1 + clip_high) * a
    clipped = cut > free
    value = torch.where(clipped, cut, free)
    slope = torch.where(clipped | ~ratio_moves, 0.0, free)  # d(−ratio·A)/d logp = −ratio·A

    kl = torch.zeros_like(logprob)
    if ref is not None:
        d, kl_moves = clamped(ref - logprob, KL_LIMIT)
        kl = d.expm1() - d
        # k3: d/d logp (e^d − d − 1), and 0 beyond the clamp, as L1's autograd has it.
        # corrected: d/d logp (ratio·k3); bounded by the clamps, it still pulls beyond them.
        k3_slope = torch.where(kl_moves, -d.expm1(), 0.0)
        kl_slope = k3_slope if kl_grad == "k3" else -ratio * d
        value = value + kl_coef * kl
        slope = slope + kl_coef * kl_slope
    if entropy is None:
        entropy = torch.zeros_like(logprob)
    value = value - entropy_coef * entropy

    d_logprob = torch.where(live, w * slope, 0.0)
    d_entropy = torch.where(live, -w * entropy_coef, 0.0)
    old_kl = log_ratio.expm1() - log_ratio

    def total(x: Tensor) -> Tensor:
        return torch.where(live, x, 0.0).sum()

    deviation = torch.where(live, log_ratio.expm1().abs(), 0.0)
    stats = torch.stack(
        (
            total(clipped.to(logprob.dtype)),
            deviation.amax() if deviation.numel() else deviation.sum(),
            total(kl),
            total(old_kl),
            total(entropy),
            total(torch.ones_like(logprob)),
        )
    )
    return total(w * value), d_logprob, d_entropy, stats
