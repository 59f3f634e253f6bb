"""What a step reports, put together from metrics.py and exchange.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

import kernels
from trainer import metrics
from trainer.exchange import Drawn, Trained, merged, rank_metrics, rank_timing
from trainer.flops import peak_flops
from trainer.metrics import Clock
from trainer.types import Advantages, Rollout, StepStats

if TYPE_CHECKING:
    from trainer.step import Trainer


def statistics(
    trainer: Trainer,
    rollouts: list[Rollout],
    lengths: kernels.Lengths,
    advantages: Advantages,
    drawn: list[Drawn],
    by_rank: list[Trained],
    clock: Clock,
    dropped: int,
    skipped: frozenset[int],
    halved: int,
) -> StepStats:
    """All the step reports; the one place where it waits for the device."""
    config, optimizer, model = trainer.config, trainer.optimizer, trainer.working
    updates, outcomes = merged(by_rank)
    trained = [micro for batches in updates for micro in batches]
    values = {
        **metrics.reward_metrics(rollouts, advantages),
        **metrics.length_metrics(rollouts, lengths, config.budget),
        **metrics.policy_metrics(outcomes),
        **metrics.gap_metrics(rollouts, trained),
        **metrics.packing_metrics(updates, config.train.micro_batch_tokens, model.config),
        **metrics.rollout_metrics([part.stats for part in drawn]),
        **rank_metrics(drawn, by_rank, model.config),
        "optim/grad_norm": optimizer.last_norm,
        "optim/lr": optimizer.lr,
        "optim/skipped": optimizer.skipped,
        "data/dropped_prompts": dropped,
    }
    if config.train.debug:
        # Old log-probs and the first mini-batch run the same kernels on the same packing.
        first = values.get("policy/ratio_dev_first", 0)  # absent when all samples were dropped
        assert first == 0, first
    tokens = {
        "rollout": sum(len(r.completion.token_ids) for r in rollouts),
        "old_logprob": sum(micro.passes * len(micro.batch.input_ids) for micro in trained),
        "update": sum(len(micro.batch.input_ids) for micro in trained),
    }
    seconds = metrics.speed(
        clock.seconds(),
        tokens,
        metrics.step_flops(rollouts, trained, model.config),
        trainer.world.size * peak_flops(model.head_weight.device, model.head_weight.dtype),
    )
    seconds |= rank_timing(drawn) | {"memory/halved": halved}
    return StepStats(trainer.step, values, seconds, rollouts, advantages, skipped)
