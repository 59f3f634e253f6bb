"""LCPO rewards (arXiv 2503.04697, eq. 1 and 2) and group-relative advantages."""

from __future__ import annotations

import torch
from torch import Tensor

NONE, EXACT, MAX = 0, 1, 2  # mode ids


def rewards(
    correct: Tensor,
    n_y: Tensor,
    n_gold: Tensor,
    mode: Tensor,
    kind: str,
    alpha_exact: float,
    alpha_max: float,
    delta: float,
) -> Tensor:
    """Reward, float32 [N], each row by its own mode."""
    slack = (n_gold - n_y).float()  # exact: the difference is taken in integers
    if kind == "linear":
        exact = correct - alpha_exact * slack.abs()
        at_most = correct * (alpha_max * slack + delta).clamp(0.0, 1.0)
    else:
        exact = torch.sigmoid(-alpha_exact * slack.abs()) + correct
        within = torch.where(slack >= 0, 0.1, 0.0)
        at_most = (torch.sigmoid(alpha_max * slack) + within).clamp(0.0, 1.0) + correct
    return torch.where(mode == EXACT, exact, torch.where(mode == MAX, at_most, correct))


def advantages(
    reward: Tensor, group: Tensor, num_groups: int, estimator: str, eps: float
) -> Tensor:
    """Advantage, float32 [N]. Groups may be ragged and interleaved.

    Sums run over a [num_groups, N] table instead of scattering: the order of additions is fixed
    without atomics, and N is some thousands of scalars.
    """
    row = group.long()
    member = torch.arange(num_groups, device=group.device)[:, None] == row  # [G, N]

    def group_sum(values: Tensor) -> Tensor:
        return torch.where(member, values, 0.0).sum(1)[row]  # [N]

    count = group_sum(torch.ones_like(reward))
    # Relative to the group's minimum, equal rewards are zeros, so their mean and advantage are
    # exactly 0; the mean of 16 times 0.1 is not exactly 0.1.
    low = reward.new_full((num_groups,), torch.inf).scatter_reduce_(0, row, reward, "amin")[row]
    relative = reward - low
    centred = relative - group_sum(relative) / count
    if estimator == "dr_grpo":
        return centred
    others = (count - 1).clamp(min=1)  # a group of one has centred = 0, so 0 comes out
    if estimator == "rloo":
        return centred * count / others
    std = (group_sum(centred * centred) / others).sqrt()
    return centred / (std + eps)


def lcpo_advantage(
    correct: Tensor,
    n_y: Tensor,
    n_gold: Tensor,
    mode: Tensor,
    group: Tensor,
    num_groups: int,
    kind: str,
    alpha_exact: float,
    alpha_max: float,
    delta: float,
    estimator: str,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(correctness, length, reward, advantage), float32 [N] each; see ops.lcpo_advantage."""
    reward = rewards(correct, n_y, n_gold, mode, kind, alpha_exact, alpha_max, delta)
    advantage = advantages(reward, group, num_groups, estimator, eps)
    return correct.clone(), reward - correct, reward, advantage
