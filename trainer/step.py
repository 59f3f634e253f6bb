"""*** THE FILE: one LCPO step, top to bottom. ***

    prompts -> rollouts -> scores -> advantages -> packed batches -> old and reference log-probs
            -> for each mini-batch: loss, backward, clip, optimizer -> statistics

Left out of the recipe on purpose: a value model and GAE (GRPO has none), a KL penalty inside the
reward (LCPO puts it in the loss). Every noun is in types.py, every verb is a function tested alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from transformers import PreTrainedTokenizerBase

import kernels
from trainer import lcpo
from trainer.config import Config
from trainer.data.stream import Cursor, PromptStream
from trainer.exchange import draw_together, gather_trained, merged
from trainer.flops import forward_flops
from trainer.grading.grader import Grader
from trainer.metrics import Clock, MicroBatch, Outcome, names_of, skipped_samples
from trainer.model import Decoder, PackedAttention, take_rows
from trainer.optim import Optimizer
from trainer.packing import (
    micro_batches,
    nothing_to_train,
    pack,
    sequence_weights,
    shares_prompts,
)
from trainer.recovery import learn_within_memory
from trainer.rollout import Request, RolloutEngine, Sampling
from trainer.seeds import derive_seed
from trainer.selfcheck import self_check
from trainer.shards import is_divided
from trainer.stepstats import statistics
from trainer.types import Advantages, Completion, PackedBatch, Prompt, Rollout, StepStats
from trainer.world import ALONE, World


@dataclass
class Trainer:
    """What a step works with. `cursor` moves only when the step is done."""

    config: Config
    model: Decoder  # float32 masters: their gradients, and unless split_adamw.py has them weights
    working: Decoder  # what computes: the same, or its whole copy in the compute type
    reference: Decoder | None  # frozen start of the run; None when algorithm.kl_coef is 0
    tokenizer: PreTrainedTokenizerBase
    think_end: tuple[int, ...]  # token ids of `</think>`
    stream: PromptStream
    engine: RolloutEngine
    optimizer: Optimizer
    grader: Grader = field(default_factory=Grader)
    cursor: Cursor = field(default_factory=Cursor)
    step: int = 0  # steps done
    on_phase: Callable[[str, int, int], None] = lambda phase, done, total: None
    world: World = ALONE

    @property
    def learner(self) -> Decoder:
        """What makes gradients: `working`, or the divided masters, which compute by themselves."""
        return self.model if is_divided(self.model) else self.working


def train_step(trainer: Trainer) -> StepStats:
    """One step: draw, score, learn. Raises FloatingPointError after too many non-finite updates."""
    config, world, clock = trainer.config, trainer.world, Clock()
    prompts, cursor, dropped = trainer.stream.take(trainer.cursor, config.rollout.prompts)
    with clock("rollout"):
        rollouts, drawn = draw_together(
            world,
            prompts,
            config.rollout.max_response_tokens,
            lambda mine: (generate(trainer, mine), trainer.engine.stats),
        )
    lengths = count(trainer, rollouts)
    advantages = lcpo.advantages(rollouts, lengths.n_total, config.reward, config.algorithm)
    with clock("old_logprob"), world.together():
        updates = [
            [with_old_logprobs(trainer, batch, rollouts, number == 0) for batch in batches]
            for number, batches in enumerate(pack_updates(trainer, rollouts))
        ]
    self_check(trainer, updates, logprobs)
    outcomes: list[Outcome] = []
    skips: list[torch.Tensor] = []
    planned = sum(map(len, updates))
    with clock("update"):
        for number, batches in enumerate(updates):
            updates[number], found = learn_within_memory(
                trainer, partial(learn, trainer, advantages, number), number, batches, rollouts
            )
            outcomes += found
            skips.append(trainer.optimizer.step())
    halved = sum(world.gather(len(outcomes) - planned))
    trained = gather_trained(world, updates, outcomes)
    skipped = skipped_samples(merged(trained)[0], skips)
    trainer.optimizer.check(names_of(rollouts, skipped))
    trainer.cursor, trainer.step = cursor, trainer.step + 1
    return statistics(
        trainer, rollouts, lengths, advantages, drawn, trained, clock, dropped, skipped, halved
    )


def learn(
    trainer: Trainer, advantages: Advantages, number: int, batches: list[MicroBatch]
) -> list[Outcome]:
    """The gradient of optimizer step `number`, summed over its micro-batches."""
    outcomes = []
    for micro in batches:
        trainer.on_phase("update", len(outcomes), len(batches))
        loss, stats = policy_loss(trainer, micro, advantages)
        loss.backward()
        outcomes.append(Outcome(number, loss.detach(), stats))
    return outcomes


def generate(trainer: Trainer, prompts: Sequence[Prompt]) -> list[Rollout]:
    """K graded samples of each prompt, group by group; graded as they end, in any order."""
    settings, seed = trainer.config.rollout, trainer.config.seed
    pairs = [(prompt, k) for prompt in prompts for k in range(settings.samples)]
    requests = [
        Request(
            prompt.token_ids,
            derive_seed(seed, "sample", trainer.step, prompt.group, k),
            settings.max_response_tokens,
            expected=min(prompt.budget, settings.max_response_tokens),
        )
        for prompt, k in pairs
    ]
    sampling = Sampling(settings.temperature, settings.top_p, settings.top_k)
    finished = trainer.engine.stream(
        requests, sampling, lambda done, total: trainer.on_phase("rollout", done, total)
    )
    drawn: dict[int, tuple[Completion, str]] = {}
    for index, completion in finished:
        text = trainer.tokenizer.decode(completion.token_ids)
        drawn[index] = completion, text
        trainer.grader.submit(index, text, pairs[index][0].problem)
    scores = trainer.grader.collect(lambda done, total: trainer.on_phase("grading", done, total))
    return [Rollout(*pairs[index], *drawn[index], scores[index]) for index in range(len(pairs))]


def count(trainer: Trainer, rollouts: list[Rollout]) -> kernels.Lengths:
    """Token counts of the completions from their ids, never from text."""
    device = trainer.working.head_weight.device
    tokens = [t for r in rollouts for t in r.completion.token_ids]
    ids = torch.tensor(tokens, dtype=torch.int64, device=device)  # also when there are none
    sizes = torch.tensor([0, *(len(r.completion.token_ids) for r in rollouts)])
    cu_seqlens = sizes.cumsum(0).to(torch.int32).to(device)
    return kernels.count_lengths(
        ids, cu_seqlens, eos_id=trainer.engine.eos_id, think_end=trainer.think_end
    )


def pack_updates(trainer: Trainer, rollouts: list[Rollout]) -> list[list[PackedBatch]]:
    """This rank's share of the step's samples as packed micro-batches, a list an optimizer step.

    Each rank cuts all samples and takes every world.size-th micro-batch, so all have as many.
    """
    config, model, world = trainer.config, trainer.working, trainer.world
    device = model.head_weight.device
    per_update = len(rollouts) // config.algorithm.updates
    updates = []
    for start in range(0, len(rollouts), per_update):
        kept = [
            i
            for i in range(start, start + per_update)
            if not (config.algorithm.drop_truncated and rollouts[i].completion.truncated)
        ]
        kept.sort(key=lambda i: rollouts[i].prompt.group)
        prompts = [rollouts[i].prompt.token_ids for i in kept]
        responses = [rollouts[i].completion.token_ids for i in kept]
        groups = [rollouts[i].prompt.group for i in kept]
        sizes = [len(p) for p in prompts], [len(r) for r in responses]
        shared = shares_prompts(config.train.share_prompts, *sizes, groups)
        batches = micro_batches(
            *sizes,
            groups if shared else None,
            config.train.micro_batch_tokens,
            lambda work: forward_flops(model.config, work),
            world.size,
        )
        weights = sequence_weights(
            sizes[1],
            config.algorithm.normaliser,
            constant=config.rollout.max_response_tokens,
            micro_batches=batches,
        )
        updates.append(
            [
                pack(
                    [prompts[i] for i in batch],
                    [responses[i] for i in batch],
                    weights[batch],
                    [kept[i] for i in batch],
                    device,
                    [groups[i] for i in batch] if shared else None,
                )
                if batch
                else nothing_to_train(device)
                for batch in batches[world.rank :: world.size]
            ]
        )
    return updates


def response_states(model: Decoder, batch: PackedBatch) -> torch.Tensor:
    """Hidden states that predict response tokens [R, H]: prompt rows never reach the head."""
    scale = model.config.attention_scale
    attend = PackedAttention(batch.cu_seqlens, batch.max_seqlen, scale, prefix=batch.prefix)
    return take_rows(model(batch.input_ids, batch.position_ids, attend), batch.rows)


def logprobs(
    config: Config, model: Decoder, batch: PackedBatch, vocab_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tempered log-prob and entropy of each response token, float32 [R] each; no logits kept."""
    return kernels.linear_logprob(
        response_states(model, batch),
        model.head_weight,
        batch.targets,
        temperature=config.rollout.temperature,
        vocab_size=vocab_size,
    )


@torch.no_grad()
def with_old_logprobs(
    trainer: Trainer, batch: PackedBatch, rollouts: list[Rollout], first: bool
) -> MicroBatch:
    """Log-probs before the step, in the packing of the update: the ratio starts at exactly 1.

    For the first update those of its own pass are the same, so it is left to that.
    """
    trainer.on_phase("old_logprob", 0, 0)
    config, vocab_size = trainer.config, trainer.engine.vocab_size
    if config.algorithm.old_logprob == "rollout":  # the same bits: rollout.batch_invariant
        members = batch.samples.tolist()
        values = [lp for i in members for lp in rollouts[i].completion.logprobs]
        micro = MicroBatch(batch, torch.tensor(values, device=batch.rows.device), None)
    elif first:
        micro = MicroBatch(batch, None, None)
    else:
        old, _ = logprobs(config, trainer.working, batch, vocab_size)
        micro = MicroBatch(batch, old, None, passes=1)
    if trainer.reference is not None:
        micro.ref, _ = logprobs(config, trainer.reference, batch, vocab_size)
        micro.passes += 1
    return micro


def policy_loss(
    trainer: Trainer, micro: MicroBatch, advantages: Advantages
) -> tuple[torch.Tensor, kernels.PolicyStats]:
    """The micro-batch's share of the step's loss, float32 scalar, and its statistics."""
    config, model, batch = trainer.config, trainer.learner, micro.batch
    loss, stats, logprob = kernels.linear_policy_loss(
        response_states(model, batch),
        model.head_weight,
        batch.targets,
        micro.old,
        micro.ref,
        advantages.advantage[batch.samples],  # [B]
        batch.seq_weight,
        batch.seq_ids,
        temperature=config.rollout.temperature,
        vocab_size=trainer.engine.vocab_size,
        master=None if model is trainer.model else trainer.model.head_weight,
        clip_low=config.algorithm.clip_low,
        clip_high=config.algorithm.clip_high,
        kl_coef=config.algorithm.kl_coef,
        kl_grad=config.algorithm.kl_grad,
        entropy_coef=config.algorithm.entropy_coef,
    )
    micro.old = logprob if micro.old is None else micro.old
    return loss, stats
