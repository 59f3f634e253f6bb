"""TRL's side of bench.step, run by the Python of its own environment: `step_trl.py JOB` (JSON).

A step a line on the standard input, its seconds back; see step.py for the conversation. TRL as
fast as it goes without vLLM: no activation checkpointing, old log-probs those of the loss.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, StoppingCriteria, TrainerCallback
from trl import GRPOConfig, GRPOTrainer


class OwnLength(StoppingCriteria):
    """Ends each row of `generate` at its own number of new tokens."""

    def __init__(self, start: int, lengths: list[int]) -> None:
        self.ends = start + torch.tensor(lengths)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return input_ids.shape[1] >= self.ends


class Conversation(TrainerCallback):
    """Waits for a line before each step and answers with its seconds behind it."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A line: go on; none: the peak of memory, and the end."""
        if not sys.stdin.readline():
            answer({"peak_mib": (status("VmHWM") - self.before) / 2**20})
            sys.exit()
        self.start = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The optimizer is done."""
        answer({"seconds": time.perf_counter() - self.start})


def answer(content: dict[str, float]) -> None:
    """A line of JSON on the original standard output."""
    print(json.dumps(content), file=sys.__stdout__, flush=True)


def status(field: str) -> int:
    """Bytes of resident memory now (VmRSS) or at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(x for x in lines if x.startswith(field + ":")).split()[1])


def run(job: dict[str, Any]) -> None:
    """The steps of a job until the input ends."""
    conversation = Conversation()
    conversation.before = status("VmRSS")
    tokenizer = AutoTokenizer.from_pretrained(job["folder"])
    tokenizer.pad_token = tokenizer.eos_token  # what follows a row's end then reads as its EOS
    weights = torch.bfloat16 if job["dtype"] == "bfloat16" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(job["folder"], dtype=weights)
    lengths, generate = job["lengths"], model.generate

    def own_lengths(input_ids: torch.Tensor, **settings: Any) -> torch.Tensor:
        criteria = [OwnLength(input_ids.shape[1], lengths[: len(input_ids)])]
        return generate(input_ids, stopping_criteria=criteria, **settings)

    model.generate = own_lengths
    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            folder,
            use_cpu=True,
            bf16=job["dtype"] == "autocast",
            per_device_train_batch_size=job["micro_batch"],
            gradient_accumulation_steps=len(lengths) // job["micro_batch"],
            num_generations=job["group"],
            max_completion_length=max(lengths),
            generation_kwargs={"min_new_tokens": max(lengths)},
            temperature=1.0,
            beta=0.0,
            gradient_checkpointing=False,
            learning_rate=1e-6,
            max_steps=1000,
            logging_steps=1000,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        )
        trainer = GRPOTrainer(
            model,
            lambda completions, **_: [float(len(text) % 7) for text in completions],
            args=config,
            train_dataset=Dataset.from_dict({"prompt": job["prompts"] * 1000}),
            processing_class=tokenizer,
            callbacks=[conversation],
        )
        answer({"ready": 1})
        trainer.train()


if __name__ == "__main__":
    sys.stdout = sys.stderr  # the conversation alone goes to the standard output
    run(json.loads(sys.argv[1]))
