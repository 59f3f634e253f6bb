"""The plan of a run: does it fit, how long does it take, what does it cost, what would help."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import mean
from typing import Any

from trainer.plan.costs import Cost, phases
from trainer.plan.demand import Demand, MicroBatchPlan, demands
from trainer.plan.settings import Asked, read_asked
from trainer.plan.walk import PARTS, Walk, walk_step

HOUR = 3600
MOST_GPUS = 64


@dataclass(frozen=True)
class Memory:
    """One GPU's memory: bytes by part at the worst moment of each phase."""

    asked: Asked
    demands: list[Demand]
    walk: Walk

    def total(self, phase: str) -> int:
        """Bytes of a phase."""
        return sum(self.walk.memory[phase].values())

    @property
    def worst(self) -> str:
        """The phase that takes most."""
        return max(self.walk.memory, key=self.total)

    @property
    def fits(self) -> bool:
        """Whether every phase does."""
        return self.total(self.worst) <= self.asked.capacity

    @property
    def persistent(self) -> int:
        """Bytes that no setting of the passes can change: weights, moments, gradients."""
        worst: Counter[str] = Counter()
        for parts in self.walk.memory.values():
            worst |= parts
        return sum(worst[part] for part in PARTS if part != "KV pages")


@dataclass(frozen=True)
class Plan:
    """All that is shown."""

    memory: Memory
    phases: dict[str, list[Cost]]
    step_seconds: float
    step_floor: float
    waiting: float  # mean seconds that a GPU waits for the slowest one
    evaluations: int
    evaluation_seconds: float  # of one
    hours: float  # of the whole run
    dollars: float | None
    changes: list[str] | None  # that make it fit, tried; None: none found; []: it fits
    changed: Plan | None  # the plan with them


def largest(found: Sequence[Demand]) -> MicroBatchPlan:
    """The micro-batch with the most tokens, of all GPUs."""
    every = [batch for demand in found for update in demand.updates for batch in update]
    return max(every, key=lambda batch: batch.work.tokens)


def memory_of(overrides: Sequence[str]) -> Memory:
    """A step walked; see read_asked for what is raised.

    The last one is kept: what was tried last by find_changes is what is planned next.
    """
    return _memory_of(tuple(overrides))


@lru_cache(maxsize=1)
def _memory_of(overrides: tuple[str, ...]) -> Memory:
    asked = read_asked(overrides)
    found = demands(asked)
    prompts = -(-asked.config.rollout.prompts // asked.hardware.gpus)
    return Memory(asked, found, walk_step(asked, largest(found), prompts))


def make_plan(overrides: Sequence[str]) -> Plan:
    """The plan for a command line. Raises ConfigError, RuntimeError without fake CUDA tensors."""
    memory = memory_of(overrides)
    asked, config = memory.asked, memory.asked.config
    costs = phases(asked, memory.walk, memory.demands)
    slowest = {name: max(c.seconds for c in found) for name, found in costs.items()}
    seconds = sum(slowest.values())
    floor = sum(max(c.floor for c in found) for found in costs.values())
    waiting = seconds - sum(mean(c.seconds for c in found) for found in costs.values())
    evaluation = evaluation_seconds(memory, slowest["decode"])
    count = 2 + (config.train.steps // config.evaluate.every if config.evaluate.every else 0)
    hours = (config.train.steps * seconds + count * evaluation) / HOUR
    price = asked.plan.price_per_hour
    changes = [] if memory.fits else find_changes(overrides, memory)
    return Plan(
        memory,
        costs,
        seconds,
        floor,
        waiting,
        count,
        evaluation,
        hours,
        None if price is None else price * asked.hardware.gpus * hours,
        changes,
        make_plan([*overrides, *changes]) if changes else None,
    )


def evaluation_seconds(memory: Memory, decode: float) -> float:
    """Of one evaluation, whose tokens take as long as those of a step's rollouts."""
    settings = memory.asked.config.evaluate
    samples = settings.problems * settings.samples
    tokens = samples * sum(settings.budgets)
    drawn = sum(demand.rollout.work.rows for demand in memory.demands)
    return decode * tokens / drawn


def find_changes(overrides: Sequence[str], memory: Memory) -> list[str] | None:
    """Settings that make it fit, each tried by planning again; None when nothing was found.

    First what changes no result: fewer pages, activations made again, smaller micro-batches; then
    dividing masters, moments and gradients, among more GPUs if need be.
    """
    found = _on_these(overrides, memory)
    gpus = memory.asked.hardware.gpus
    tries = [] if memory.asked.shards > 1 or gpus == 1 else [gpus]
    more = 2 ** math.floor(math.log2(gpus) + 1)
    while memory.asked.hardware.device == "cuda" and more <= MOST_GPUS:
        tries.append(more)
        more *= 2
    for count in tries:
        if found is not None or count > memory.asked.config.rollout.prompts:
            break
        more_gpus = ["train.parallel=fsdp", f"hardware.gpus={count}"]
        again = memory_of([*overrides, *more_gpus])
        changes = [] if again.fits else _on_these([*overrides, *more_gpus], again)
        found = None if changes is None else [*more_gpus, *changes]
    return found


def _on_these(overrides: Sequence[str], memory: Memory) -> list[str] | None:
    """Changes that fit on the GPUs there are."""
    if memory.persistent > memory.asked.capacity:
        return None
    config = memory.asked.config
    changes: dict[str, str] = {}
    least = config.data.max_prompt_tokens + config.rollout.max_response_tokens
    sizes = [n for n in (16384, 8192, least) if least <= n < config.train.micro_batch_tokens]
    passes = [("memory.activations", "full"), *(("train.micro_batch_tokens", n) for n in sizes)]
    while not memory.fits:
        walk = memory.walk
        over = memory.total("rollout") - memory.asked.capacity
        if over > 0:
            pages = walk.pages - math.ceil(over / walk.page_bytes)
            if pages * config.rollout.page_size < least:
                return None
            changes["rollout.pages"] = str(pages)
        elif passes:
            key, value = passes.pop(0)
            changes[key] = str(value)
        else:
            return None
        tried = [f"{key}={value}" for key, value in changes.items()]
        memory = memory_of([*overrides, *tried])
    return [f"{key}={value}" for key, value in changes.items()]


def as_json(plan: Plan) -> dict[str, Any]:
    """Everything as plain numbers: seconds, bytes, FLOPs, dollars."""
    memory, asked = plan.memory, plan.memory.asked
    return {
        "hardware": asked.name,
        "gpus": asked.hardware.gpus,
        "parallel": asked.config.train.parallel,
        "parameters": memory.walk.parameters,
        "response_tokens": mean(
            n for d in memory.demands for u in d.updates for b in u for n in b.responses
        ),
        "micro_batches": [sum(map(len, demand.updates)) for demand in memory.demands],
        "recomputed_layers": memory.walk.recomputed,
        "kv_pages": memory.walk.pages,
        "capacity": asked.capacity,
        "memory": {phase: dict(parts) for phase, parts in memory.walk.memory.items()},
        "fits": memory.fits,
        "changes": plan.changes,
        "changed": as_json(plan.changed) if plan.changed else None,
        "phases": {
            name: [cost._asdict() | {"seconds": cost.seconds} for cost in found]
            for name, found in plan.phases.items()
        },
        "step_seconds": plan.step_seconds,
        "step_floor": plan.step_floor,
        "waiting": plan.waiting,
        "evaluations": plan.evaluations,
        "evaluation_seconds": plan.evaluation_seconds,
        "hours": plan.hours,
        "dollars": plan.dollars,
    }
