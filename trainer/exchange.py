"""What the ranks of a run hand each other in a step: samples, and what their passes have found.

Rollouts are dealt out by prompt and then given to all: advantages, the packing and its denominators
are computed by each rank from the same samples, hence as one process would. Of the micro-batches
that come out each rank trains its own.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean

from kernels import PolicyStats
from trainer.flops import forward_flops
from trainer.metrics import MicroBatch, Outcome, batch_work
from trainer.model import ModelConfig
from trainer.packing import deal
from trainer.rollout import RolloutStats
from trainer.types import Prompt, Rollout
from trainer.world import World


@dataclass(frozen=True)
class Drawn:
    """One rank's rollouts."""

    tokens: int
    seconds: float
    stats: RolloutStats


@dataclass(frozen=True)
class Trained:
    """One rank's micro-batches by update, and what they left behind."""

    updates: list[list[MicroBatch]]
    outcomes: list[Outcome]


def draw_together(
    world: World,
    prompts: Sequence[Prompt],
    longest: int,
    draw: Callable[[Sequence[Prompt]], tuple[list[Rollout], RolloutStats]],
) -> tuple[list[Rollout], list[Drawn]]:
    """The samples of all prompts in their order, each group drawn by one rank: (samples, by rank).

    Groups are dealt so that the ranks have about as many tokens to draw: the budget, or `longest`
    where that is less or nothing is asked. Stopped on one rank is raised on all.
    """
    shares = deal([min(p.budget or longest, longest) for p in prompts], world.size)
    with world.together():
        start = time.perf_counter()
        mine, stats = draw([prompts[place] for place in shares[world.rank]])
        seconds = time.perf_counter() - start
    tokens = sum(len(r.completion.token_ids) for r in mine)
    parts = world.gather((mine, Drawn(tokens, seconds, stats)))
    groups: dict[int, list[Rollout]] = {}
    for share, (rollouts, _) in zip(shares, parts, strict=True):
        samples = len(rollouts) // max(1, len(share))
        for number, place in enumerate(share):
            groups[place] = rollouts[number * samples : (number + 1) * samples]
    every = [rollout for place in range(len(prompts)) for rollout in groups[place]]
    return every, [drawn for _, drawn in parts]


def gather_trained(
    world: World, updates: list[list[MicroBatch]], outcomes: list[Outcome]
) -> list[Trained]:
    """What each rank has trained; tensors on the CPU, and of the others' batches the sizes only."""
    if world.size == 1:
        return [Trained(updates, outcomes)]
    slim = [[_slim(micro) for micro in batches] for batches in updates]
    found = [
        Outcome(o.update, o.loss.cpu(), PolicyStats(*(x.cpu() for x in o.stats))) for o in outcomes
    ]
    return world.gather(Trained(slim, found))


def _slim(micro: MicroBatch) -> MicroBatch:
    batch = micro.batch
    sizes = {
        name: getattr(batch, name).to("meta")  # a shape without memory
        for name in ("input_ids", "position_ids", "rows", "targets", "seq_ids", "seq_weight")
    }
    slim = dataclasses.replace(batch, **sizes, samples=batch.samples.cpu())
    return MicroBatch(slim, micro.old.cpu(), None, micro.passes)


def merged(parts: Sequence[Trained]) -> tuple[list[list[MicroBatch]], list[Outcome]]:
    """(updates, outcomes) of all ranks, as those of one."""
    updates = [
        [micro for batches in of_all for micro in batches]
        for of_all in zip(*(part.updates for part in parts), strict=True)
    ]
    return updates, [outcome for part in parts for outcome in part.outcomes]


def rank_metrics(
    drawn: Sequence[Drawn], trained: Sequence[Trained], model: ModelConfig
) -> dict[str, float]:
    """By how much the rank with most to do exceeds the mean, in rollouts and in updates."""
    costs = [
        [
            sum(forward_flops(model, batch_work(micro.batch)) for micro in batches)
            for batches in of_all
        ]
        for of_all in zip(*(part.updates for part in trained), strict=True)
    ]
    return {
        "ranks/rollout_imbalance": _imbalance([part.tokens for part in drawn]),
        "ranks/update_imbalance": max(map(_imbalance, costs), default=0.0),
    }


def rank_timing(drawn: Sequence[Drawn]) -> dict[str, float]:
    """Share of the rollout phase in which the ranks wait for the last one, on average."""
    seconds = [part.seconds for part in drawn]
    return {"ranks/rollout_waiting": 1 - mean(seconds) / max(seconds)}


def _imbalance(costs: Sequence[float]) -> float:
    return max(costs) / mean(costs) - 1 if any(costs) else 0.0
