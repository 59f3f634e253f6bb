"""T11: groups that teach nothing have no gradient, and leave no number that is not finite."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from tests.helpers import tiny_trainer
from trainer import step
from trainer.packing import NORMALISERS
from trainer.types import Completion

PLAIN = ("algorithm.kl_coef=0", "algorithm.entropy_coef=0")


def step_with(trainer, change):
    """What train_step says of rollouts that `change(index, rollout)` has altered; all finite."""
    generate = step.generate
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            step,
            "generate",
            lambda *parts: [change(i, r) for i, r in enumerate(generate(*parts))],
        )
        stats = step.train_step(trainer)
    assert all(math.isfinite(value) for value in stats.metrics.values())
    return stats


def weights(trainer) -> list[torch.Tensor]:
    return [p.detach().clone() for p in trainer.model.parameters()]


def unmoved(trainer, before: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))


def empty(_, rollout):
    return dataclasses.replace(rollout, completion=Completion([], [], truncated=True), text="")


@pytest.mark.parametrize("normaliser", NORMALISERS)
def test_t11_all_completions_empty(normaliser, tiny_base):
    trainer = tiny_trainer(tiny_base, *PLAIN, f"algorithm.normaliser={normaliser}")
    before = weights(trainer)
    stats = step_with(trainer, empty)
    assert stats.metrics["policy/loss"] == stats.metrics["optim/grad_norm"] == 0.0
    assert not stats.skipped and unmoved(trainer, before)


@pytest.mark.parametrize("estimator", ["grpo", "dr_grpo", "rloo"])
def test_t11_a_reward_that_is_no_number(estimator, tiny_base):
    """Its group of three has advantage 0; the others learn as without it."""
    settings = (*PLAIN, "algorithm.updates=1", f"algorithm.estimator={estimator}")

    def spoil(index, rollout):
        score = dataclasses.replace(rollout.score, value=math.nan)
        return dataclasses.replace(rollout, score=score) if index == 4 else rollout

    usual = step_with(tiny_trainer(tiny_base, *settings), lambda _, rollout: rollout)
    trainer = tiny_trainer(tiny_base, *settings)
    stats = step_with(trainer, spoil)
    assert not stats.advantages.advantage[3:6].any() and usual.advantages.advantage[3:6].any()
    for part in (slice(0, 3), slice(6, 12)):
        assert torch.equal(stats.advantages.advantage[part], usual.advantages.advantage[part])
    assert not stats.skipped and stats.metrics["optim/grad_norm"] > 0


def test_t11_every_reward_is_no_number(tiny_base):
    trainer = tiny_trainer(tiny_base, *PLAIN)
    before = weights(trainer)

    def spoil(_, rollout):
        return dataclasses.replace(
            rollout, score=dataclasses.replace(rollout.score, value=-math.inf)
        )

    stats = step_with(trainer, spoil)
    assert stats.metrics["optim/grad_norm"] == 0.0 and not stats.skipped
    assert unmoved(trainer, before)


def test_t11_a_group_of_one(tiny_base):
    """Where the estimator allows it: there is nothing to compare with, so nothing to learn."""
    one = ("rollout.samples=1", "algorithm.estimator=dr_grpo")
    trainer = tiny_trainer(tiny_base, *PLAIN, *one)
    before = weights(trainer)
    stats = step_with(trainer, lambda _, rollout: rollout)
    assert stats.advantages.reward.any()
    assert stats.metrics["policy/loss"] == stats.metrics["optim/grad_norm"] == 0.0
    assert unmoved(trainer, before)
