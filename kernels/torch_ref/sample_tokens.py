"""Sampling by an exponential race, with counter-based noise: batch-invariant and resumable."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.torch_ref.philox import vocabulary_bits

_SMALL = 2.0**-10


def exponential(bits: Tensor) -> Tensor:
    """Standard exponential variates, float32, from 32 random bits: −log(1 − u).

    Small values decide the race, so u keeps its relative precision near 0, where a series replaces
    the logarithm (its error is below 2**-32 relative). u is below 1, so the result is finite.
    """
    u = ((bits.float() + 0.5) * 2.0**-32).clamp(max=1 - 2.0**-24)
    series = u + u * u * (0.5 + u * (1 / 3))
    return torch.where(u < _SMALL, series, -torch.log(1 - u))


def sample_tokens(
    logits: Tensor,
    temperature: float,
    top_k: int,
    top_p: float,
    seeds: Tensor,
    positions: Tensor,
    vocab_size: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """(tokens int64 [B], logprob f32 [B], cut_logprob f32 [B]); see ops.sample_tokens."""
    z = logits[:, :vocab_size].float()  # [B, vocab_size]
    peak = z.amax(1)
    # amax propagates NaN; +inf, or -inf everywhere, is no distribution either
    valid = peak.isfinite()
    if temperature == 0:
        tokens = (z == peak[:, None]).int().argmax(1)  # the first of equals
        certain = torch.where(valid, 0.0, torch.nan)
        return torch.where(valid, tokens, -1), certain, certain.clone()
    z = z / temperature
    z = z - (peak / temperature)[:, None]
    weight = z.exp()
    kept = _kept(weight, z, top_k, top_p)
    noise = exponential(vocabulary_bits(seeds, positions, vocab_size))
    # argmax of p_j / E_j picks j with probability p_j, as argmax of z_j + Gumbel_j does, for one
    # logarithm less; the first of equals wins.
    score = torch.where(kept, weight / noise, -1.0)
    tokens = (score == score.amax(1, keepdim=True)).int().argmax(1)
    chosen = z.gather(1, tokens[:, None]).squeeze(1)
    logprob = chosen - weight.sum(1).log()
    cut_logprob = chosen - torch.where(kept, weight, 0.0).sum(1).log()
    nan = torch.full_like(logprob, torch.nan)
    return (
        torch.where(valid, tokens, -1),
        torch.where(valid, logprob, nan),
        torch.where(valid, cut_logprob, nan),
    )


def _kept(weight: Tensor, z: Tensor, top_k: int, top_p: float) -> Tensor:
    """Which entries survive the cuts, bool [B, V]; entries are ranked by (logit down, id up)."""
    if top_k in (0, z.shape[1]) and top_p == 1.0:
        return torch.ones_like(z, dtype=torch.bool)
    order = z.argsort(dim=1, descending=True, stable=True)
    keep = torch.ones_like(z, dtype=torch.bool)
    if top_k > 0:
        keep[:, top_k:] = False
    if top_p < 1.0:
        ranked = torch.where(keep, weight.gather(1, order), 0.0).double()
        mass = ranked.cumsum(1)
        # An entry stays while the better ones have not reached top_p of what top-k left.
        keep[:, 1:] &= mass[:, :-1] < top_p * mass[:, -1:]
    return torch.zeros_like(keep).scatter_(1, order, keep)
