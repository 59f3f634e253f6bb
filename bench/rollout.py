"""`python -m bench.rollout [FOLDER ...]`: the rollout engine against transformers' `generate`.

Each FOLDER holds a model (default: the embedded base; `python -m bench.smollm2 FOLDER` makes the
135 M one). For each of them, interleaved in one process on an idle machine:

- tokens/s on 64 prompts whose samples end at fixed random lengths of 8 to 128 tokens, as an EOS
  would end them, at several batch sizes of `generate`; the best one is what counts;
- prefill of a group of 16 on a prompt of 200 tokens against that of one sample;
- cache slots in use for each live token, and peak memory of either, each in a fresh process;
- 1,000 requests through a cache for 8 against a large one: the same tokens?
- a decode step of 64 rows against its floor: weights and cached keys and values read once, or the
  products at the rate of a large one, whichever takes longer.

Figures go to OUT/bench/rollout.csv, OUT is docs, or runs/bench with --quick.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase, StoppingCriteria

from bench import machine, memory
from bench.memory import status
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


def speed(subject: Subject) -> dict[str, float]:
    """Tokens/s of ours and of the best `generate`."""
    requests = subject.requests(subject.sizes.prompts)
    total = sum(r.max_new_tokens for r in requests)
    engine, other = subject.engine(), transformers_run(subject)
    contenders = {"ours": lambda: engine.generate(requests, WARM)}
    for size in subject.sizes.batches:
        contenders[f"generate, batch {size}"] = lambda size=size: other(requests, size)
    seconds = interleaved(contenders, subject.sizes.rounds)
    figures = {f"tokens/s, {name}": total / s for name, s in seconds.items()}
    best = max(rate for name, rate in figures.items() if "generate" in name)
    figures["tokens/s, times the best generate"] = figures["tokens/s, ours"] / best
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
    short = [Request(r.token_ids, r.seed, 1) for r in requests]
    seconds = interleaved(
        {
            "all": lambda: engine.generate(requests, WARM),
            "first": lambda: engine.generate(short, WARM),
        },
        subject.sizes.rounds,
    )
    step = (seconds["all"] - seconds["first"]) / (steps - 1)
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


def peak_memory(subject: Subject, args: argparse.Namespace) -> dict[str, float]:
    """MiB that a rollout takes beyond what the process had with its model loaded."""
    found = {}
    for name in ("ours", "generate"):
        command = [sys.executable, "-m", "bench.rollout", str(subject.folder), "--peak", name]
        command += ["--dtype", subject.dtype, *(["--quick"] if args.quick else [])]
        environment = os.environ | {"MALLOC_TRIM_THRESHOLD_": "0"}
        out = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout
        found[f"peak memory, {name}, MiB"] = float(out.split()[-1])
    return found


def print_peak(subject: Subject, name: str) -> None:
    """In the fresh process: a small rollout to load what it loads, then the measured one."""
    requests = subject.requests(subject.sizes.prompts)
    if name == "ours":
        engine = subject.engine()
        run = lambda some: engine.generate(some, WARM)  # noqa: E731
    else:
        other = transformers_run(subject)
        run = lambda some: other(some, max(subject.sizes.batches))  # noqa: E731
    run(requests[:1])
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, the high-water mark
    run(requests)
    print((status("VmHWM") - before) / memory.MIB)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.rollout", description=__doc__)
    parser.add_argument("folders", nargs="*", default=["embedded"])
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--peak", choices=("ours", "generate"), help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    sizes = QUICK if args.quick else Sizes()
    rows = []
    for path in args.folders:
        subject = load(path, args.dtype, sizes)
        if args.peak:
            print_peak(subject, args.peak)
            return
        about = {"model": subject.folder.name, "dtype": args.dtype}
        about |= machine.describe(torch.device("cpu")) | {"load": f"{machine.busy():.1f}"}
        print(" · ".join(map(str, about.values())), flush=True)
        for part in (speed, prefill, small_pool, decode_step, lambda s: peak_memory(s, args)):
            for name, value in part(subject).items():
                print(f"  {name:55} {value:10.4g}", flush=True)
                rows.append({"figure": name, "value": f"{value:.4g}"} | about)
    folder = (args.out or Path("runs/bench" if args.quick else "docs")) / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "rollout.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
