"""What a step asks of each GPU: lengths drawn as the run draws budgets, rollouts as it schedules.

No tensor of a model is made: the engine's own scheduler runs with a runner that only counts, and
the trainer's own packing cuts the micro-batches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import mean

import torch
from torch import Tensor

from trainer.data.stream import draw_budget
from trainer.flops import Work, forward_flops, sequence_work
from trainer.packing import deal, micro_batches, shares_prompts
from trainer.plan.settings import Asked
from trainer.rollout import Request, RolloutEngine
from trainer.rollout.engine import PREFILL_TOKENS, rounds
from trainer.rollout.runner import SYNC_EVERY
from trainer.rollout.scheduler import Admission, Sample, Scheduler

NOTHING = Work(0, 0, 0)


@dataclass(frozen=True)
class MicroBatchPlan:
    """A micro-batch by its lengths."""

    prompts: list[int]
    responses: list[int]
    groups: list[int] | None  # as packing.pack takes them; None: a prompt a sample
    work: Work


@dataclass
class RolloutPlan:
    """One GPU's rollouts."""

    decode: list[tuple[int, int]] = field(default_factory=list)  # rows, tokens they attend to
    prefill: list[tuple[int, int]] = field(default_factory=list)  # tokens, pairs
    work: Work = field(default_factory=lambda: NOTHING)  # what the mathematics asks for


@dataclass(frozen=True)
class Demand:
    """One step of one GPU; `updates` holds the micro-batches of each optimizer step."""

    rollout: RolloutPlan
    updates: list[list[MicroBatchPlan]]


def prompt_tokens(asked: Asked) -> int:
    """Of each prompt."""
    return min(asked.plan.prompt_tokens, asked.config.data.max_prompt_tokens)


def response_lengths(asked: Asked) -> list[int]:
    """Tokens of the responses to each prompt of a step: its budget, scaled to the mean asked for.

    Without budgets they are uniform up to twice that mean, or up to the limit.
    """
    config, limit = asked.config, asked.config.rollout.max_response_tokens
    count = config.rollout.prompts
    if config.budget.mode == "none":
        budgets = [math.ceil(limit * (i + 0.5) / count) for i in range(count)]
    else:
        budgets = [draw_budget(config.budget, config.seed, 0, row)[1] for row in range(count)]
    wanted = asked.plan.response_tokens
    if wanted is None:
        # The law's own mean, which the draw of one step misses by some percent.
        rows = range(count, 200 * count)
        wanted = (
            mean(draw_budget(config.budget, config.seed, 0, row)[1] for row in rows)
            if config.budget.mode != "none"
            else limit / 2
        )
    if wanted > limit:
        wanted = limit
    lengths = [float(b) for b in budgets]
    for _ in range(20):  # scaling meets the limit, which takes more scaling
        factor = wanted / mean(lengths)
        lengths = [min(limit, max(1.0, n * factor)) for n in lengths]
    return [round(n) for n in lengths]


def demands(asked: Asked) -> list[Demand]:
    """One a GPU: prompts and micro-batches dealt out as exchange.py and step.pack_updates do."""
    lengths, gpus = response_lengths(asked), asked.hardware.gpus
    known = asked.config.budget.mode != "none"
    shares = deal(lengths if known else [1] * len(lengths), gpus)
    updates = cut(asked, lengths)
    return [
        Demand(
            simulate(asked, [lengths[i] for i in shares[gpu]]),
            [batches[gpu::gpus] for batches in updates],
        )
        for gpu in range(gpus)
    ]


def requests(asked: Asked, lengths: Sequence[int] | None, prompts: int) -> list[Request]:
    """The samples of so many prompts; without `lengths` each may reach the limit."""
    rollout, tokens = asked.config.rollout, prompt_tokens(asked)
    return [
        Request(
            # Prompts that differ, or they would be one group.
            (prompt, *[0] * (tokens - 1)),
            0,
            lengths[prompt] if lengths else rollout.max_response_tokens,
        )
        for prompt in range(prompts)
        for _ in range(rollout.samples)
    ]


def simulate(asked: Asked, lengths: Sequence[int]) -> RolloutPlan:
    """The rollouts of prompts whose responses have these lengths."""
    engine = make_engine(asked, None)
    pool = engine.pool_for(requests(asked, None, len(lengths)))
    scheduler = Scheduler(
        requests(asked, lengths, len(lengths)),
        pool,
        batch_size=engine.batch_size,
        prefill_tokens=PREFILL_TOKENS,
    )
    runner = _Counting(asked.hardware.device)
    while scheduler.left:
        for samples, drawn in rounds(scheduler, runner):
            for sample, (tokens, _) in zip(samples, drawn, strict=True):
                sample.tokens += tokens
            ended = [s for s in samples if len(s.tokens) >= s.limit]
            if ended:
                scheduler.finish(ended)
                runner.keep(scheduler.running)
    prompt, samples = prompt_tokens(asked), asked.config.rollout.samples
    works = [sequence_work(prompt, [n] * samples, shared=True) for n in lengths]
    runner.found.work = sum(works, NOTHING)
    return runner.found


def make_engine(asked: Asked, model: object) -> RolloutEngine:
    """The run's engine."""
    rollout = asked.config.rollout
    return RolloutEngine(
        model,
        eos_id=0,
        vocab_size=asked.model.vocab_size,
        batch_size=rollout.batch_size,
        page_size=rollout.page_size,
        pages=rollout.pages,
    )


class _Counting:
    """In the place of rollout.runner.Runner: counts, and draws token 0."""

    def __init__(self, device: str) -> None:
        self.steps_ahead = 1 if torch.device(device).type == "cpu" else SYNC_EVERY
        self.found, self._context = RolloutPlan(), 0

    def start(self, admission: Admission, rows: int) -> tuple[Tensor, Tensor]:
        sizes = [len(group.token_ids) for group, _ in admission.prefill]
        if sizes:
            pairs = sum(n * (n + 1) // 2 for n in sizes)
            self.found.prefill.append((sum(sizes), pairs))
        self._context += sum(len(group.token_ids) for _, group in admission.started)
        return self._drawn(1, len(admission.started))

    def decode(self, rows: int, steps: int) -> tuple[Tensor, Tensor]:
        for _ in range(steps):
            self._context += rows
            self.found.decode.append((rows, self._context))
        return self._drawn(steps, rows)

    def keep(self, running: Sequence[Sample]) -> None:
        # Of a sample's tokens the last one is not in the cache yet.
        self._context = sum(len(s.request.token_ids) + len(s.tokens) - 1 for s in running)

    def extend(self, grown: Sequence[Sample]) -> None:
        pass

    def _drawn(self, steps: int, rows: int) -> tuple[Tensor, Tensor]:
        return torch.zeros(steps, rows, dtype=torch.int64), torch.zeros(steps, rows)


def cut(asked: Asked, lengths: Sequence[int]) -> list[list[MicroBatchPlan]]:
    """Micro-batches of each optimizer step, of all GPUs, as step.pack_updates cuts them."""
    config, prompt = asked.config, prompt_tokens(asked)
    per_update = len(lengths) // config.algorithm.updates
    updates = []
    for start in range(0, len(lengths), per_update):
        groups = [
            g for g in range(start, start + per_update) for _ in range(config.rollout.samples)
        ]
        responses = [lengths[g] for g in groups]
        prompts = [prompt] * len(groups)
        shared = shares_prompts(config.train.share_prompts, prompts, responses, groups)
        batches = micro_batches(
            prompts,
            responses,
            groups if shared else None,
            config.train.micro_batch_tokens,
            lambda work: forward_flops(asked.model, work),
            asked.hardware.gpus,
        )
        updates.append([_micro_batch(prompt, responses, groups, b, shared) for b in batches])
    return updates


def _micro_batch(
    prompt: int, responses: list[int], groups: list[int], members: list[int], shared: bool
) -> MicroBatchPlan:
    kept = [responses[i] for i in members]
    of = [groups[i] for i in members] if shared else list(range(len(members)))
    by_group: dict[int, list[int]] = {}
    for group, length in zip(of, kept, strict=True):
        by_group.setdefault(group, []).append(length)
    works = [sequence_work(prompt, lengths, shared=True) for lengths in by_group.values()]
    return MicroBatchPlan(
        [prompt] * len(members), kept, of if shared else None, sum(works, NOTHING)
    )
