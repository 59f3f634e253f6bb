"""What bench.rollout measures of a model; see there."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase, StoppingCriteria

from bench import machine
from bench.process import Process
from trainer.data.prompts import encode_prompt
from trainer.embedded.task import make_problem
from trainer.model import Decoder, load_model
from trainer.preflight import find_model, load_tokenizer
from trainer.rollout import Request, RolloutEngine, Sampling
from trainer.types import Completion

NO_EOS = -1  # samples end at their own length, for all contenders alike
WARM = Sampling(1.0)


@dataclass(frozen=True)
class Sizes:
    """How much is measured; the quick ones only show that all of it works."""

    prompts: int = 64
    lengths: tuple[int, int] = (8, 128)
    group: int = 16
    prompt_tokens: int = 200
    requests: int = 1000
    batches: tuple[int, ...] = (16, 32, 64)  # of `generate`
    rounds: int = 3


QUICK = Sizes(6, (2, 6), 4, 20, 30, (3, 6), 1)


@dataclass(frozen=True)
class Subject:
    """A model of ours with its tokenizer and the work."""

    folder: Path
    model: Decoder
    tokenizer: PreTrainedTokenizerBase
    dtype: str
    sizes: Sizes

    def engine(self, **settings: Any) -> RolloutEngine:
        """Ours; page size 8 and a batch of all prompts unless said otherwise."""
        settings = {"batch_size": self.sizes.prompts, "page_size": 8} | settings
        ids = len(self.tokenizer)
        return RolloutEngine(self.model, eos_id=NO_EOS, vocab_size=ids, **settings)

    def requests(self, count: int) -> list[Request]:
        """Problems of the embedded task, each with its own length."""
        rng = random.Random(0)
        questions = [make_problem(0, i, "train").question for i in range(count)]
        prompts = [encode_prompt(self.tokenizer, q, "exact", 64) for q in questions]
        return [Request(p, i, rng.randint(*self.sizes.lengths)) for i, p in enumerate(prompts)]


def load(path: str, dtype: str, sizes: Sizes) -> Subject:
    """`dtype` is what is computed in, so the weights are in it, as the trainer's working copy."""
    folder = find_model(path)
    tokenizer, _ = load_tokenizer(folder)
    return Subject(folder, load_model(folder, dtype=getattr(torch, dtype)), tokenizer, dtype, sizes)


class OwnLength(StoppingCriteria):
    """Ends each row of `generate` at its own number of new tokens."""

    def __init__(self, start: int, lengths: list[int]) -> None:
        self.ends = start + torch.tensor(lengths)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return input_ids.shape[1] >= self.ends


def transformers_run(subject: Subject) -> Callable[[Sequence[Request], int], None]:
    """`generate` in batches, left-padded, the same lengths and temperature."""
    dtype = getattr(torch, subject.dtype)
    model = AutoModelForCausalLM.from_pretrained(subject.folder, dtype=dtype).eval()

    def run(requests: Sequence[Request], batch_size: int) -> None:
        for at in range(0, len(requests), batch_size):
            batch = requests[at : at + batch_size]
            longest = max(len(r.token_ids) for r in batch)
            rows = [[0] * (longest - len(r.token_ids)) + [*r.token_ids] for r in batch]
            mask = [[0] * (longest - len(r.token_ids)) + [1] * len(r.token_ids) for r in batch]
            lengths = [r.max_new_tokens for r in batch]
            drawn = model.generate(
                torch.tensor(rows),
                attention_mask=torch.tensor(mask),
                max_new_tokens=max(lengths),
                stopping_criteria=[OwnLength(longest, lengths)],
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                eos_token_id=None,
                pad_token_id=0,
            )
            assert drawn.shape[1] == longest + max(lengths)

    return run


def interleaved(contenders: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each; in each round each runs once, after one round to warm up."""
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            if number:
                found[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in found.items()}


def speed(subject: Subject, rivals: dict[str, Process]) -> dict[str, float]:
    """Tokens/s of ours, of the best `generate` and of each rival."""
    requests = subject.requests(subject.sizes.prompts)
    total = sum(r.max_new_tokens for r in requests)
    engine, other = subject.engine(), transformers_run(subject)
    contenders = {"ours": lambda: engine.generate(requests, WARM)}
    for size in subject.sizes.batches:
        contenders[f"generate, batch {size}"] = lambda size=size: other(requests, size)
    contenders |= {name: process.step for name, process in rivals.items()}
    seconds = interleaved(contenders, subject.sizes.rounds)
    rates = {name: total / s for name, s in seconds.items()}
    figures = {f"tokens/s, {name}": rate for name, rate in rates.items()}
    best = max(rate for name, rate in rates.items() if name.startswith("generate"))
    figures["tokens/s, times the best generate"] = rates["ours"] / best
    figures |= {f"tokens/s, times {name}": rates["ours"] / rates[name] for name in rivals}
    figures["cache slots for a live token"] = engine.stats.slots_per_token
    figures["idle rows, share"] = engine.stats.idle_share
    return figures


def prefill(subject: Subject) -> dict[str, float]:
    """Time to the first token of a whole group over that of one sample."""
    ids = [i % 200 + 20 for i in range(subject.sizes.prompt_tokens)]
    group = [Request(tuple(ids), k, 1) for k in range(subject.sizes.group)]
    engine = subject.engine()
    seconds = interleaved(
        {
            "one": lambda: engine.generate(group[:1], WARM),
            "group": lambda: engine.generate(group, WARM),
        },
        10 * subject.sizes.rounds,
    )
    return {
        "prefill of one, ms": 1e3 * seconds["one"],
        "prefill of a group, times one": seconds["group"] / seconds["one"],
    }


def small_pool(subject: Subject) -> dict[str, float]:
    """All requests through pages for 8 of the longest, and through as many as they like."""
    low, _ = subject.sizes.lengths
    requests = [
        Request(r.token_ids, r.seed, low + r.seed % 9)
        for r in subject.requests(subject.sizes.requests)
    ]
    longest = max(len(r.token_ids) + r.max_new_tokens for r in requests)
    small, large = subject.engine(pages=8 * -(-longest // 8)), subject.engine(batch_size=256)
    found: dict[str, list[Completion]] = {}
    seconds = {}
    for name, engine in (("small", small), ("large", large)):
        start = time.perf_counter()
        found[name] = engine.generate(requests, WARM)
        seconds[name] = time.perf_counter() - start
    different = sum(
        a.token_ids != b.token_ids for a, b in zip(found["small"], found["large"], strict=True)
    )
    return {
        "small pool: requests that differ from a large pool's": different,
        "small pool: preemptions": small.stats.preempted,
        "small pool: seconds, times a large pool's": seconds["small"] / seconds["large"],
    }


def decode_step(subject: Subject) -> dict[str, float]:
    """Mean time of a step at a full batch, and of the arithmetic or reading that it needs."""
    rows, steps = subject.sizes.prompts, max(subject.sizes.lengths) // 2
    requests = [Request(r.token_ids, r.seed, steps) for r in subject.requests(rows)]
    engine, config = subject.engine(), subject.model.config

    def seconds() -> float:
        times: list[float] = []  # of each token; first come the first ones of all rows
        drawn = engine.stream(requests, WARM, on_token=lambda *_: times.append(time.perf_counter()))
        list(drawn)
        return (times[-1] - times[rows - 1]) / (steps - 1)

    seconds()  # warms up
    step = statistics.median(seconds() for _ in range(subject.sizes.rounds))
    dtype = getattr(torch, subject.dtype)
    cached = sum(len(r.token_ids) + steps / 2 for r in requests)  # mean tokens, all rows
    kv_width = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    parameters = sum(p.numel() for p in subject.model.parameters())
    if not config.tie_word_embeddings:  # of an untied embedding a step reads a few rows
        parameters -= subject.model.model.embed_tokens.weight.numel()
    moved = (parameters + cached * kv_width) * dtype.itemsize
    heads = config.num_attention_heads * config.head_dim * config.num_hidden_layers
    flops = 2 * parameters * rows + 4 * cached * heads
    gemm = (4096, config.hidden_size, config.intermediate_size)
    floor = machine.ceilings(torch.device("cpu"), dtype, gemm).floor(flops, moved)
    return {
        "decode step, ms": 1e3 * step,
        "decode step, floor ms": 1e3 * floor,
        "decode step, times its floor": step / floor,
    }
