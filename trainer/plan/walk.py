"""Walks one step on fake tensors: a prefill, decode steps, log-probs, an update, the optimizer.

The functions are those of the run (step.py, rollout/runner.py, optim.py), at full size. Each part
is walked once, at its largest; costs.py multiplies.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from trainer import step
from trainer.memory import GIB, recomputed_layers
from trainer.metrics import MicroBatch
from trainer.model import Decoder
from trainer.model.precision import send_gradients
from trainer.optim import Optimizer
from trainer.packing import pack
from trainer.plan.demand import MicroBatchPlan, make_engine, prompt_tokens, requests
from trainer.plan.fake import backward, fake_tensors
from trainer.plan.meter import Meter, Record
from trainer.plan.settings import Asked
from trainer.rollout import Sampling
from trainer.rollout.engine import PREFILL_TOKENS
from trainer.rollout.runner import Runner
from trainer.rollout.scheduler import Scheduler
from trainer.step import Trainer
from trainer.types import Advantages, PackedBatch

SHARDED = ("masters", "moments", "gradients")  # divided by the GPUs with train.parallel=fsdp
PARTS = ("masters", "moments", "gradients", "working copy", "reference", "KV pages")
PASS = ("activations", "workspace")
PHASES = ("rollout", "log-probs", "update", "optimizer")


class Unit(NamedTuple):
    """One part of a step, walked once."""

    records: list[Record]
    launches: int


@dataclass(frozen=True)
class Walk:
    """What one GPU does, in parts, and its memory at the worst moment of each phase."""

    prefill: Unit
    prefill_tokens: int
    decode: dict[int, Unit]  # by rows; attention's cache is not in it
    logprob: Unit
    update: Unit
    batch: MicroBatchPlan  # of the last two
    optimizer: Unit
    parameters: int
    recomputed: int  # layers
    memory: dict[str, Counter[str]]  # phase: bytes by part
    page_bytes: int
    pages: int


class Walker:
    """The parts of a step on fake tensors, under one meter."""

    def __init__(self, asked: Asked, meter: Meter) -> None:
        self.asked, self.meter = asked, meter
        self.trainer = self._build()
        self.memory: dict[str, Counter[str]] = {}

    def _build(self) -> Trainer:
        asked, meter, config = self.asked, self.meter, self.asked.config
        device = asked.hardware.device

        def decoder(label: str, dtype: torch.dtype) -> Decoder:
            with meter.labelled(label):
                return Decoder(asked.model, device=device, dtype=dtype)

        model = decoder("masters", torch.float32)
        working, reference = model, None
        if asked.dtype != torch.float32 or asked.shards > 1:
            working = decoder("working copy", asked.dtype)
            send_gradients(working, model)
        if config.algorithm.kl_coef > 0:
            reference = decoder("reference", asked.dtype).requires_grad_(False)
        with meter.labelled("masters"):  # their low bits, beside a working copy
            optimizer = Optimizer(model, config.optim, working, divided=asked.shards > 1)
        self.parameters = sum(p.numel() for p in model.parameters())
        working.model.recomputed = recomputed_layers(
            config.memory,
            asked.model,
            tokens=config.train.micro_batch_tokens,
            dtype=asked.dtype,
            parameters=self.parameters // asked.shards,
            free=int(asked.capacity - sum(divided(asked, meter.live).values())),
        )
        engine = make_engine(asked, working)
        # No tokenizer, no prompts: nothing here reads text.
        return Trainer(config, model, working, reference, None, (), None, engine, optimizer)

    def unit(self) -> Unit:
        """What was counted since the last reset."""
        found = Unit(self.meter.records, self.meter.launches)
        self.meter.reset()
        return found

    def packed(self, batch: MicroBatchPlan) -> PackedBatch:
        """The micro-batch's tensors; its tokens do not matter."""
        prompts, responses = (
            [[0] * n for n in sizes] for sizes in (batch.prompts, batch.responses)
        )
        weights = torch.ones(len(prompts))
        samples = range(len(prompts))
        device = self.asked.hardware.device
        self.meter.pairs = batch.work.pairs
        return pack(prompts, responses, weights, samples, device, batch.groups)

    def logprob(self, batch: MicroBatchPlan) -> Unit:
        """Old log-probs, one pass of one model."""
        packed, trainer = self.packed(batch), self.trainer
        self.meter.reset()
        with torch.no_grad(), self.meter.labelled("activations"):
            step.logprobs(trainer.config, trainer.working, packed, trainer.engine.vocab_size)
        self._keep_peak("log-probs")
        return self.unit()

    def update(self, batch: MicroBatchPlan) -> Unit:
        """Forward and backward pass of a micro-batch."""
        trainer, meter = self.trainer, self.meter
        with meter.labelled("activations"):
            packed = self.packed(batch)
            micro = MicroBatch(packed, None, None)
            if trainer.reference is not None:
                micro.ref = torch.empty(len(packed.targets), device=packed.targets.device)
            advantages = Advantages(
                *(torch.empty(len(batch.prompts)).to(packed.targets.device),) * 4
            )
            meter.reset()
            loss, _ = step.policy_loss(trainer, micro, advantages)
            # The tensor would keep its graph: backward gets it, and nobody else.
            backward_of = [loss]
            del loss
            backward(backward_of.pop(), self._claim())
        self._keep_peak("update")
        return self.unit()

    def _claim(self) -> object:
        trainer = self.trainer
        pairs = zip(trainer.working.parameters(), trainer.model.parameters(), strict=True)
        masters = {id(working): master for working, master in pairs}

        def claim(leaf: Tensor) -> None:  # a master itself, for the head
            self.meter.relabel(masters.get(id(leaf), leaf).grad, "gradients")

        return claim

    def fill_gradients(self) -> None:
        """Gradients of all masters, as a micro-batch before has left them."""
        with self.meter.labelled("gradients"):
            for parameter in self.trainer.model.parameters():
                parameter.grad = torch.empty_like(parameter)

    def optimize(self) -> Unit:
        """The optimizer's step; its first one makes the moments."""
        self.meter.reset()
        with self.meter.labelled("activations"):
            before = len(self.trainer.optimizer.adamw.state)
            with self.meter.labelled("activations" if before else "moments"):
                self.trainer.optimizer.step()
        self._keep_peak("optimizer")
        # Real tensors go to the device in lists, a few launches in all; fake ones one by one.
        return self.unit()._replace(launches=0)

    @torch.no_grad()
    def rollout(self, prompts: int, pages: int) -> tuple[Unit, int, dict[int, Unit]]:
        """(prefill, its tokens, {rows: decode step}) with so many pages of the cache."""
        asked, meter, rollout = self.asked, self.meter, self.asked.config.rollout
        engine = self.trainer.engine
        wanted = requests(asked, None, prompts)
        pool = engine.pool_for(wanted)
        scheduler = Scheduler(
            wanted, pool, batch_size=rollout.batch_size, prefill_tokens=PREFILL_TOKENS
        )
        with meter.labelled("KV pages"):
            runner = Runner(
                engine.model,
                Sampling(rollout.temperature, rollout.top_p, rollout.top_k),
                eos_id=engine.eos_id,
                vocab_size=engine.vocab_size,
                rows=scheduler.batch_size,
                pages=pages,
                page_size=rollout.page_size,
                pages_per_row=pool.pages_for(prompt_tokens(asked) + rollout.max_response_tokens),
                cuda_graphs=False,
            )
        admission, tokens = scheduler.admit(), 0
        meter.reset()
        with meter.labelled("activations"):
            sizes = [len(group.token_ids) for group, _ in admission.prefill]
            tokens, meter.pairs = sum(sizes), sum(n * (n + 1) // 2 for n in sizes)
            runner.start(admission, 0)
            self._keep_peak("rollout")
            prefill = self.unit()
            decode, meter.pairs = {}, 0
            for rows in sorted({1, scheduler.batch_size}):
                runner.decode(rows, 1)
                decode[rows] = self.unit()
        return prefill, tokens, decode

    def _keep_peak(self, phase: str) -> None:
        self.memory[phase] = Counter(self.meter.peak)


def divided(asked: Asked, parts: Counter[str]) -> Counter[str]:
    """What is left of them on one GPU."""
    return Counter({k: v // asked.shards if k in SHARDED else v for k, v in parts.items() if v > 0})


def gathered(asked: Asked, parameters: int) -> int:
    """Bytes that FSDP2 holds beside the parts: weights and gradients of embedding and head, whose
    group is the root, and the weights of two layers.
    """
    if asked.shards == 1:
        return 0
    model = asked.model
    ends = model.vocab_size * model.hidden_size * (1 if model.tie_word_embeddings else 2)
    layer = (parameters - ends) // model.num_hidden_layers
    return 2 * (ends + layer) * asked.dtype.itemsize


def walk_step(asked: Asked, batch: MicroBatchPlan, prompts: int) -> Walk:
    """Walks a step of one GPU with `prompts` prompts whose largest micro-batch is `batch`.

    Raises RuntimeError where fake CUDA tensors cannot be had (fake.why_no_cuda).
    """
    with fake_tensors(asked.hardware.device), Meter(asked.hardware.device) as meter:
        walker = Walker(asked, meter)
        walker.fill_gradients()
        walker.optimize()  # from here on the moments are there
        pages = walker.trainer.engine.pool_for(requests(asked, None, prompts)).pages
        prefill, tokens, decode = walker.rollout(prompts, pages)
        logprob = walker.logprob(batch)
        walker.fill_gradients()
        update = walker.update(batch)
        optimizer = walker.optimize()
        memory = {phase: divided(asked, walker.memory[phase]) for phase in PHASES}
        memory["update"]["workspace"] += gathered(asked, walker.parameters)
    heads = asked.model.num_key_value_heads * asked.model.head_dim
    page = 2 * asked.model.num_hidden_layers * heads * asked.config.rollout.page_size
    return Walk(
        prefill,
        tokens,
        decode,
        logprob,
        update,
        batch,
        optimizer,
        walker.parameters,
        walker.trainer.working.model.recomputed,
        memory,
        page * asked.dtype.itemsize,
        pages,
    )


def gib(size: float) -> float:
    """Bytes in GiB."""
    return size / GIB
