"""Our side of bench.step: `python -m bench.step_ours JOB` (JSON), steps as in step_trl.py."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

import kernels
from bench.memory import MIB, status
from trainer import step
from trainer.data.stream import Cursor
from trainer.model import Decoder, PackedAttention, take_rows
from trainer.preflight import build_trainer, load_tokenizer
from trainer.rollout import Request, RolloutEngine
from trainer.run import compose_config
from trainer.step import Trainer
from trainer.types import Completion, PackedBatch, Problem, Prompt

NO_EOS = -1  # samples end at their own length


class OwnLengths:
    """The engine, but that each sample ends at a given number of tokens."""

    def __init__(self, engine: RolloutEngine, lengths: Sequence[int]) -> None:
        self._engine, self._lengths = engine, lengths
        engine.eos_id = NO_EOS

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def stream(self, requests: Sequence[Request], *rest: Any) -> Iterator[tuple[int, Completion]]:
        """RolloutEngine.stream; that a sample will end early is not known when it starts."""
        ending = [
            dataclasses.replace(request, max_new_tokens=length)
            for request, length in zip(requests, self._lengths, strict=True)
        ]
        return self._engine.stream(ending, *rest)


class SamePrompts:
    """A stream that gives the same prompts at each step."""

    def __init__(self, prompts: list[Prompt]) -> None:
        self._prompts = prompts

    def take(self, cursor: Cursor, count: int) -> tuple[list[Prompt], Cursor, int]:
        """See PromptStream.take."""
        return self._prompts, cursor, 0


def make_trainer(job: dict[str, Any]) -> Trainer:
    """A trainer for the job: GRPO without a reference, one optimizer step a rollout."""
    lengths, group = job["lengths"], job["group"]
    count, longest = len(lengths) // group, max(lengths)
    micro_batch = 9216  # a single one for either model: the fastest
    config = compose_config(
        [
            *("+experiment=l1_exact", "scale=embedded", f"model.path={job['folder']}"),
            *(f"model.dtype={job['dtype']}", f"train.share_prompts={job['share']}"),
            *("data.require_think=false", "data.max_prompt_tokens=512", "data.embedded_rows=8"),
            *(f"rollout.prompts={count}", f"rollout.samples={group}"),
            *(f"rollout.max_response_tokens={longest}", "budget.min=1", f"budget.max={longest}"),
            *("algorithm.updates=1", "algorithm.kl_coef=0", "optim.lr=1e-6"),
            *(f"train.micro_batch_tokens={micro_batch}", "train.self_check_every=0"),
            *("train.debug=false", "evaluate.problems=1"),
        ]
    )
    trainer, _ = build_trainer(config)
    tokenizer, _ = load_tokenizer(Path(job["folder"]))
    problem = Problem("bench", "", ("7",))
    ids = [tuple(tokenizer.encode(text)) for text in job["prompts"]]
    prompts = [Prompt(g, problem, "max", longest, ids[g % len(ids)]) for g in range(count)]
    trainer.stream = SamePrompts(prompts)
    trainer.engine = OwnLengths(trainer.engine, lengths)
    return trainer


def loss_of(model: Decoder, batch: PackedBatch) -> torch.Tensor:
    """The policy loss of a packed batch whose advantages are all 1."""
    scale = model.config.attention_scale
    attend = PackedAttention(batch.cu_seqlens, batch.max_seqlen, scale, prefix=batch.prefix)
    ones = torch.ones(len(batch.samples))
    loss, _, _ = kernels.linear_policy_loss(
        take_rows(model(batch.input_ids, batch.position_ids, attend), batch.rows),
        model.head_weight,
        batch.targets,
        None,
        None,
        ones,
        batch.seq_weight,
        batch.seq_ids,
        temperature=1.0,
        clip_low=0.2,
        clip_high=0.2,
        kl_coef=0.0,
        kl_grad="k3",
        entropy_coef=0.0,
    )
    return loss


def main() -> None:
    """A step for each line of the standard input; at its end the peak of memory."""
    importlib.import_module("torch._dynamo")  # with the first optimizer; TRL imports it at once
    before = status("VmRSS")
    trainer = make_trainer(json.loads(sys.argv[1]))
    print(json.dumps({"ready": 1}), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        stats = step.train_step(trainer)
        seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds} | stats.seconds), flush=True)
    print(json.dumps({"peak_mib": (status("VmHWM") - before) / MIB}), flush=True)


if __name__ == "__main__":
    main()
