"""Seconds of a step from its walk: at the machine's limits (the floor), and at what it reaches.

The floor takes each op at the slower of its arithmetic and its memory traffic, both at the rates of
trainer/flops.py. The estimate takes the hardware file's shares of those rates, and a pass is never
faster than the host can start its ops. Phases wait for the slowest GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from trainer.flops import Peak, forward_flops
from trainer.plan.demand import Demand, MicroBatchPlan
from trainer.plan.settings import Asked
from trainer.plan.walk import Unit, Walk

GIGA, MICRO = 1e9, 1e-6
FLOAT32 = 4  # bytes of a gradient that is exchanged, as it is summed


class Cost(NamedTuple):
    """Of a part of a step on one GPU; `device` and `host` are seconds of either by itself."""

    flops: float = 0.0
    bytes: float = 0.0
    floor: float = 0.0
    device: float = 0.0
    host: float = 0.0

    @property
    def seconds(self) -> float:
        """The slower of the two: the device works while the host starts ops."""
        return max(self.device, self.host)

    def times(self, factor: float) -> Cost:
        """So many of it."""
        return Cost(*(factor * x for x in self))

    def plus(self, other: Cost) -> Cost:
        """Both, one after the other."""
        return Cost(*(a + b for a, b in zip(self, other, strict=True)))


class Prices:
    """Costs of the parts of a walk on the machine that is asked for."""

    def __init__(self, asked: Asked, walk: Walk) -> None:
        self.asked, self.walk, self.peak = asked, walk, asked.peak
        self._work = forward_flops(asked.model, walk.batch.work)
        self.logprob, self.update = self.of(walk.logprob), self.of(walk.update)
        self.optimizer = self.of(walk.optimizer).times(1 / asked.shards)
        self._decode = {rows: self.of(unit) for rows, unit in walk.decode.items()}
        model = asked.model
        heads = model.num_key_value_heads * model.head_dim
        self._cached = 2 * model.num_hidden_layers * heads * asked.dtype.itemsize  # bytes a token
        width = model.num_attention_heads * model.head_dim
        self._attended = 4 * model.num_hidden_layers * width  # FLOPs a token

    def of(self, unit: Unit) -> Cost:
        """Of a part as it was walked."""
        hardware, peak = self.asked.hardware, self.peak
        flops = moved = floor = device = 0.0
        for record in unit.records:
            rate = _rate(peak, record.dtype)
            share = hardware.attention if record.kind == "attention" else hardware.product
            traffic = record.bytes / peak.memory
            flops += record.flops
            moved += record.bytes
            floor += max(record.flops / rate, traffic)
            device += max(record.flops / (rate * share), traffic / hardware.memory)
        return Cost(flops, moved, floor, device, unit.launches * hardware.host_us * MICRO)

    def decode(self, rows: int, context: int) -> Cost:
        """A decode step of `rows` rows that attend to `context` tokens in all."""
        low, high = min(self._decode), max(self._decode)
        share = (rows - low) / max(1, high - low)
        cost = self._decode[low].times(1 - share).plus(self._decode[high].times(share))
        if self.asked.config.rollout.cuda_graphs:
            cost = cost._replace(host=0.0)
        moved = context * self._cached
        floor = moved / self.peak.memory
        cost = cost.plus(
            Cost(context * self._attended, moved, floor, floor / self.asked.hardware.memory)
        )
        return cost._replace(device=cost.seconds, host=0.0)  # the steps cannot run ahead further

    def prefill(self, tokens: int) -> Cost:
        """Of so many tokens of prompts: at least a pass over the weights."""
        whole = self.of(self.walk.prefill)
        cost, least = whole.times(tokens / self.walk.prefill_tokens), self._decode[1]
        cost = cost._replace(floor=max(cost.floor, least.floor))
        return cost._replace(device=max(cost.device, least.device, whole.host), host=0.0)

    def scaled(self, cost: Cost, batch: MicroBatchPlan) -> Cost:
        """`cost` of the walked micro-batch, for another one."""
        factor = forward_flops(self.asked.model, batch.work) / self._work
        found = cost.times(factor)
        return found._replace(device=max(found.device, cost.host), host=0.0)

    def exchange(self, micro_batches: int) -> Cost:
        """Gradients and weights between the GPUs for one optimizer step, behind everything else.

        fsdp: each micro-batch gathers weights for both its passes and sums gradients into the
        parts; then the copy for rollouts is gathered. replicated: gradients are summed once, which
        takes as much as a sum into parts and a gathering of them.
        """
        hardware, count = self.asked.hardware, self.walk.parameters
        if hardware.gpus == 1:
            return Cost()
        share = (hardware.gpus - 1) / hardware.gpus
        weights = count * self.asked.dtype.itemsize
        moved = micro_batches * (2 * weights + count * FLOAT32) + weights
        if self.asked.shards == 1:
            moved = 2 * count * FLOAT32
        seconds = share * moved / (hardware.link_gb_s * GIGA)
        return Cost(0, share * moved, seconds, seconds)


def phases(asked: Asked, walk: Walk, demands: Sequence[Demand]) -> dict[str, list[Cost]]:
    """{phase: cost on each GPU} of one step."""
    prices = Prices(asked, walk)
    found: dict[str, list[Cost]] = {
        name: [] for name in ("prefill", "decode", "log-probs", "update", "optimizer", "exchange")
    }
    for demand in demands:
        found["prefill"].append(_sum(prices.prefill(n) for n, _ in demand.rollout.prefill))
        found["decode"].append(_sum(prices.decode(*step) for step in demand.rollout.decode))
        passes = Cost()
        for number, batches in enumerate(demand.updates):
            # The first update's old log-probs are its own; see step.with_old_logprobs.
            count = (number > 0) + (asked.config.algorithm.kl_coef > 0)
            one = _sum(prices.scaled(prices.logprob, batch) for batch in batches)
            passes = passes.plus(one.times(count))
        found["log-probs"].append(passes)
        every = [batch for batches in demand.updates for batch in batches]
        found["update"].append(_sum(prices.scaled(prices.update, batch) for batch in every))
        found["optimizer"].append(prices.optimizer.times(len(demand.updates)))
        found["exchange"].append(_sum(prices.exchange(len(b)) for b in demand.updates))
    return found


def _sum(costs: object) -> Cost:
    total = Cost()
    for cost in costs:
        total = total.plus(cost)
    return total


def _rate(peak: Peak, dtype: torch.dtype) -> float:
    return peak.bfloat16 if dtype == torch.bfloat16 else peak.full
