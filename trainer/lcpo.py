"""LCPO for the trainer: rollouts in, reward terms and group-relative advantages out.

The formulas themselves are kernels.lcpo_advantage (arXiv 2503.04697, eq. 1 and 2); here is only
what turns dataclasses into its tensors, and the measures that say how much of the signal is length.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

import kernels
from trainer.config import AlgorithmSettings, RewardSettings
from trainer.grading import UNGRADED
from trainer.types import MODES, Advantages, Rollout


def reward_spec(settings: RewardSettings) -> kernels.RewardSpec:
    """The kernel's reward parameters."""
    return kernels.RewardSpec(
        kind=settings.kind,
        alpha_exact=settings.alpha_exact * settings.alpha_factor,
        alpha_max=settings.alpha_max * settings.alpha_factor,
        delta=settings.delta,
    )


def advantages(
    rollouts: Sequence[Rollout],
    n_y: torch.Tensor,
    reward: RewardSettings,
    algorithm: AlgorithmSettings,
) -> Advantages:
    """Rewards and advantages, float32 [N]. `n_y` int32 [N]: tokens generated, EOS included.

    Groups are keyed by the prompt's group id: a problem met again with another budget is another.
    A sample that could not be graded is a group of its own: its advantage is 0, and the others of
    its prompt are compared without it.
    A score that is not finite says nothing about its group: it counts as 0 and the whole group has
    advantage 0.
    """
    keys = [(r.prompt.group, r.sample if r.score.reason in UNGRADED else None) for r in rollouts]
    ids = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    device = n_y.device

    def ints(values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    scores = [r.score.value if math.isfinite(r.score.value) else 0.0 for r in rollouts]
    terms = kernels.lcpo_advantage(
        torch.tensor(scores, dtype=torch.float32, device=device),
        n_y,
        ints([r.prompt.budget for r in rollouts]),
        ints([MODES.index(r.prompt.mode) for r in rollouts]),
        ints([ids[key] for key in keys]),
        len(ids),
        reward=reward_spec(reward),
        estimator=algorithm.estimator,
    )
    broken = {r.prompt.group for r in rollouts if not math.isfinite(r.score.value)}
    for i, rollout in enumerate(rollouts):
        if rollout.prompt.group in broken:
            terms.advantage[i] = 0.0
    return Advantages(terms.correctness, terms.length, terms.reward, terms.advantage)
