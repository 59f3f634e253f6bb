"""The parts of bench.step that need one process: passes over tokens, lengths, the profile."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import profile
from transformers import AutoModelForCausalLM

from bench import machine
from bench.step_ours import loss_of, make_trainer
from trainer import step
from trainer.flops import BACKWARD, forward_flops
from trainer.metrics import batch_work
from trainer.model import Decoder, has_bfloat16, load_model
from trainer.packing import pack
from trainer.types import PackedBatch

SHOWN = 0.01  # share of a step's time from which an op is listed

Row = dict[str, Any]


def dtypes() -> list[torch.dtype]:
    """What is measured here."""
    return [torch.float32, torch.bfloat16] if has_bfloat16("cpu") else [torch.float32]


def interleaved(contenders: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Least seconds of each; in each round each runs once, after one round to warm up."""
    found = dict.fromkeys(contenders, float("inf"))
    for number in range(rounds + 1):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            if number:
                found[name] = min(found[name], time.perf_counter() - start)
    return found


def packed(lengths: Sequence[int], vocab_size: int) -> PackedBatch:
    """Random tokens in sequences whose first token is the prompt."""
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(vocab_size, (n,), generator=generator).tolist() for n in lengths]
    count = sum(lengths) - len(lengths)
    weights = torch.full((len(lengths),), 1 / count)
    return pack([r[:1] for r in rows], [r[1:] for r in rows], weights, range(len(lengths)))


def ours(model: Decoder, batch: PackedBatch) -> Callable[[], None]:
    """Forward and backward of the policy loss."""

    def run() -> None:
        loss_of(model, batch).backward()
        model.zero_grad(set_to_none=True)

    return run


def theirs(model: torch.nn.Module, lengths: Sequence[int]) -> Callable[[], None]:
    """Forward and backward of transformers' own loss; rows are filled up on the right."""
    ids = torch.randint(100, (len(lengths), max(lengths)), generator=torch.Generator())
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    labels = ids.masked_fill(~mask, -100)
    attention_mask = None if mask.all() else mask.long()

    def run() -> None:
        model(ids, attention_mask=attention_mask, labels=labels, use_cache=False).loss.backward()
        model.zero_grad(set_to_none=True)

    return run


def pass_part(name: str, folder: Path, total: int, rounds: int) -> list[Row]:
    """Forward and backward of `total` tokens: ours ragged, transformers padded and unpadded."""
    rng = random.Random(0)
    ragged: list[int] = []
    while sum(ragged) < total:
        ragged.append(min(rng.randint(total // 64, total // 8), total - sum(ragged)))
    equal = [total // 16] * 16
    rows = []
    for dtype in dtypes():
        model = load_model(folder, dtype=dtype)
        other = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        batches = {"ragged": packed(ragged, 300), "equal": packed(equal, 300)}
        seconds = interleaved(
            {f"ours, {case}": ours(model, batch) for case, batch in batches.items()}
            | {
                "transformers, padded": theirs(other, ragged),
                "transformers, equal lengths": theirs(other, equal),
            },
            rounds,
        )
        config = model.config
        flops = (1 + BACKWARD) * forward_flops(config, batch_work(batches["ragged"]))
        gemm = (total, config.hidden_size, config.intermediate_size)
        rate = machine.ceilings(torch.device("cpu"), dtype, gemm).gemm
        for contender, took in seconds.items():
            row = {"part": "pass", "model": name, "case": f"{total} tokens", "seconds": took}
            row |= {"contender": contender, "dtype": str(dtype).removeprefix("torch.")}
            if contender == "ours, ragged":
                row["share_of_gemm"] = flops / took / rate
            rows.append(row)
    return rows


def lengths_part(name: str, folder: Path, total: int, rounds: int) -> list[Row]:
    """The same tokens in long and in short sequences, and fewer sequences of one length."""
    dtype = dtypes()[-1]
    model = load_model(folder, dtype=dtype)
    sizes = [total >> shift for shift in range(6)]
    shapes = {f"{total // n} x {n}": [n] * (total // n) for n in sizes}
    shapes |= {f"{count} x {sizes[-1]}": [sizes[-1]] * count for count in (1, 2, 4, 8, 16)}
    contenders = {shape: ours(model, packed(lengths, 300)) for shape, lengths in shapes.items()}
    return [
        {"part": "lengths", "model": name, "case": case, "contender": "ours", "seconds": took}
        | {"dtype": str(dtype).removeprefix("torch."), "tokens": sum(shapes[case])}
        for case, took in interleaved(contenders, rounds).items()
    ]


def profile_part(name: str, job: dict[str, Any]) -> list[Row]:
    """Ops of one whole step by their own time."""
    dtype = str(dtypes()[-1]).removeprefix("torch.")
    trainer = make_trainer(job | {"dtype": dtype, "share": True})
    step.train_step(trainer)  # warm
    with profile() as found:
        step.train_step(trainer)
    events = found.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    return [
        {"part": "profile", "model": name, "case": "equal", "dtype": dtype}
        | {"contender": event.key, "seconds": event.self_cpu_time_total / 1e6}
        | {"share": event.self_cpu_time_total / total, "calls": event.count}
        for event in sorted(events, key=lambda event: -event.self_cpu_time_total)
        if event.self_cpu_time_total >= SHOWN * total
    ]
