"""What a step reports, computed from its results alone. Names are listed in docs/metrics.md."""

from __future__ import annotations

import contextlib
import itertools
import resource
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

import numpy as np
import torch

import kernels
from trainer.config import BudgetSettings
from trainer.flops import BACKWARD, Work, forward_flops, packed_work, sequence_work
from trainer.grading import REASONS
from trainer.model import ModelConfig
from trainer.rollout import RolloutStats
from trainer.types import Advantages, PackedBatch, Rollout

BUCKETS = 4  # of equal width over [budget.min, budget.max]


@dataclass
class Clock:
    """Seconds by phase: `with clock("rollout"): ...`; nothing waits before they are read.

    On CUDA they are those of the device, between events in its stream: the host runs ahead of it.
    """

    _marks: list[tuple[str, Any, Any]] = field(default_factory=list)  # phase, start, stop

    @contextlib.contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = _mark()
        yield
        self._marks.append((phase, start, _mark()))

    def seconds(self) -> dict[str, float]:
        """{phase: seconds}; on CUDA it waits for the device."""
        found: dict[str, float] = defaultdict(float)
        for phase, start, stop in self._marks:
            if isinstance(start, float):
                found[phase] += stop - start
            else:
                stop.synchronize()
                found[phase] += start.elapsed_time(stop) / 1e3
        return found


def _mark() -> float | torch.cuda.Event:
    if not torch.cuda.is_available():
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


@dataclass
class MicroBatch:
    """A packed batch with its log-probs before the step, float32 [R] each."""

    batch: PackedBatch
    old: torch.Tensor | None  # None until the first update, which makes its own
    ref: torch.Tensor | None
    passes: int = 0  # forward passes that made them


@dataclass(frozen=True)
class Outcome:
    """What one micro-batch left behind; tensors stay on the device until the end of the step."""

    update: int  # which optimizer step of the rollout
    loss: torch.Tensor
    stats: kernels.PolicyStats


def skipped_samples(
    updates: Sequence[Sequence[MicroBatch]], skips: Sequence[torch.Tensor]
) -> frozenset[int]:
    """Indices of the samples in optimizer steps that were skipped, one flag a step."""
    return frozenset(
        i
        for batches, skip in zip(updates, skips, strict=True)
        if skip
        for micro in batches
        for i in micro.batch.samples.tolist()
    )


def names_of(rollouts: Sequence[Rollout], indices: Iterable[int]) -> str:
    """Samples as "group/sample", by which samples.jsonl finds them."""
    return " ".join(f"{rollouts[i].prompt.group}/{rollouts[i].sample}" for i in sorted(indices))


def reward_metrics(rollouts: Sequence[Rollout], terms: Advantages) -> dict[str, float]:
    """Reward split into its terms, reasons, and how groups are made up."""
    reasons = Counter(r.score.reason for r in rollouts)
    right_by_group: dict[int, list[float]] = defaultdict(list)
    for r in rollouts:
        right_by_group[r.prompt.group].append(r.score.value)
    shares = [sum(values) / len(values) for values in right_by_group.values()]
    values = {
        "reward/mean": terms.reward.mean().item(),
        "reward/correctness": terms.correctness.mean().item(),
        "reward/length": terms.length.mean().item(),
        "group/all_right": float(np.mean([s == 1 for s in shares])),
        "group/all_wrong": float(np.mean([s == 0 for s in shares])),
        "group/mixed": float(np.mean([0 < s < 1 for s in shares])),
        "advantage/length_r2": length_r2(rollouts, terms),
    }
    return values | {f"reason/{reason}": reasons[reason] / len(rollouts) for reason in REASONS}


def length_r2(rollouts: Sequence[Rollout], terms: Advantages) -> float:
    """Share of the advantage's variance that the length term, centred by group, explains."""
    groups = np.array([r.prompt.group for r in rollouts])
    length = terms.length.double().cpu().numpy().copy()
    for group in np.unique(groups):
        length[groups == group] -= length[groups == group].mean()
    return correlation(length, terms.advantage.double().cpu().numpy()) ** 2


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson correlation; 0 when one of the two does not vary."""
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt((a * a).sum() * (b * b).sum())
    return float((a * b).sum() / scale) if scale > 0 else 0.0


def length_metrics(
    rollouts: Sequence[Rollout], lengths: kernels.Lengths, settings: BudgetSettings
) -> dict[str, float]:
    """Tokens used against tokens asked, over all and by budget bucket."""
    used = lengths.n_total.cpu().numpy().astype(float)
    values = {
        "length/mean": float(used.mean()),
        "length/think": lengths.n_think.float().mean().item(),
        "length/truncated": lengths.truncated.float().mean().item(),
    }
    asked = np.array([r.prompt.budget for r in rollouts], dtype=float)
    if not asked.all():  # mode none: nothing was asked
        return values
    deviation = np.abs(used - asked) / asked
    values |= {
        "length/deviation": float(deviation.mean()),
        "length/correlation": correlation(used, asked),
        "length/over_budget": float((used > asked).mean()),
    }
    edges = np.linspace(settings.min, settings.max + 1, BUCKETS + 1).astype(int)
    for low, high in itertools.pairwise(edges):
        inside = (asked >= low) & (asked < high)
        if inside.any():
            values[f"length/deviation@{low}-{high - 1}"] = float(deviation[inside].mean())
    return values


def policy_metrics(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """KL, entropy, clipping and ratios over the tokens of the step; one transfer.

    Empty when algorithm.drop_truncated left nothing to train on.
    """
    if not outcomes:
        return {}
    rows = torch.stack(
        [
            torch.stack(
                [
                    o.loss,
                    s.tokens,
                    s.clip_count,
                    s.kl_sum,
                    s.old_kl_sum,
                    s.entropy_sum,
                    s.ratio_max_dev,
                ]
            ).double()
            for o in outcomes
            for s in [o.stats]
        ]
    ).cpu()
    loss, tokens, clipped, kl, old_kl, entropy = rows[:, :6].sum(0).tolist()
    deviation = rows[:, 6]
    first = torch.tensor([o.update == 0 for o in outcomes])
    tokens = max(tokens, 1.0)
    return {
        "policy/loss": loss,
        "policy/kl": kl / tokens,
        "policy/old_kl": old_kl / tokens,
        "policy/entropy": entropy / tokens,
        "policy/clip_fraction": clipped / tokens,
        "policy/ratio_dev_first": max(deviation[first].tolist(), default=0.0),
        "policy/ratio_dev_max": deviation.max().item(),
    }


def gap_metrics(
    rollouts: Sequence[Rollout], micro_batches: Sequence[MicroBatch]
) -> dict[str, float]:
    """Gap between the engine's log-probs and the trainer's on the same tokens."""
    if not micro_batches:
        return {}
    ours = torch.cat([m.old for m in micro_batches]).double().cpu()
    samples = torch.cat([m.batch.samples for m in micro_batches]).tolist()
    theirs = torch.tensor([lp for i in samples for lp in rollouts[i].completion.logprobs]).double()
    gap = ours - theirs
    if not len(gap):
        return {}
    return {
        "policy/rollout_gap_max": gap.abs().max().item(),
        "policy/rollout_gap_mean": gap.abs().mean().item(),
        "policy/rollout_gap_k3": (gap.exp() - gap - 1).mean().item(),
    }


def rollout_metrics(stats: Sequence[RolloutStats]) -> dict[str, float]:
    """How well the engines' rows and pages were used; one engine a rank."""
    return {
        "rollout/idle_share": mean(s.idle_share for s in stats),
        "rollout/pages_peak": max(s.pages_peak for s in stats),
        "rollout/slots_per_token": mean(s.slots_per_token for s in stats),
        "rollout/preempted": sum(s.preempted for s in stats),
    }


def batch_work(batch: PackedBatch) -> Work:
    """What a forward pass over the batch computes."""
    return packed_work(batch.cu_seqlens, batch.prefix, len(batch.rows))


def packing_metrics(
    updates: Sequence[Sequence[MicroBatch]], max_tokens: int, model: ModelConfig
) -> dict[str, float]:
    """How evenly and how far the micro-batches are filled; empty when there are none."""
    batches = [micro.batch for update in updates for micro in update]
    if not batches:
        return {}
    tokens = [len(batch.input_ids) for batch in batches]
    held = sum(int(batch.cu_seqlens[-1]) for batch in batches)
    imbalance = 0.0
    for update in filter(None, updates):
        costs = [forward_flops(model, batch_work(micro.batch)) for micro in update]
        imbalance = max(imbalance, max(costs) * len(costs) / sum(costs) - 1)
    return {
        "packing/micro_batches": len(batches),
        "packing/fill": sum(tokens) / (max_tokens * len(batches)),
        "packing/padding": 1 - held / sum(tokens),
        "packing/imbalance": imbalance,
    }


def step_flops(
    rollouts: Sequence[Rollout],
    micro_batches: Sequence[MicroBatch],
    model: ModelConfig,
) -> dict[str, int]:
    """Model FLOPs by phase: what the mathematics asks for, nothing computed twice."""
    responses: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for r in rollouts:
        responses[r.prompt.token_ids].append(len(r.completion.token_ids))
    drawn = sum(
        forward_flops(model, sequence_work(len(prompt), lengths, shared=True))
        for prompt, lengths in responses.items()
    )
    forward = [forward_flops(model, batch_work(micro.batch)) for micro in micro_batches]
    passes = [micro.passes for micro in micro_batches]
    return {
        "rollout": drawn,
        "old_logprob": sum(f * n for f, n in zip(forward, passes, strict=True)),
        "update": (1 + BACKWARD) * sum(forward),
    }


def speed(
    seconds: dict[str, float], tokens: dict[str, int], flops: dict[str, int], peak: float
) -> dict[str, float]:
    """Everything that depends on the machine and not on the seed; all three are by phase.

    peak: FLOP/s of a large product, see flops.peak_flops.
    """
    values = dict(seconds)
    values["total"] = sum(seconds.values())
    for phase, count in tokens.items():
        values[f"speed/{phase}_tokens_per_s"] = count / seconds[phase]
    for phase, work in flops.items():
        values[f"mfu/{phase}"] = work / seconds[phase] / peak
    values["mfu/total"] = sum(flops.values()) / values["total"] / peak
    values["memory/peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    if torch.cuda.is_available():
        values["memory/cuda_peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return values
