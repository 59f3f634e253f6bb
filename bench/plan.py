"""`python -m bench.plan [FOLDER]`: what trainer.plan predicts, against what is measured here.

For the embedded model and, with its FOLDER (`python -m bench.smollm2 FOLDER`), SmolLM2-135M: one
update of the trainer on the CPU, in each precision.

- FLOPs: those of torch.utils.flop_counter inside the torch backend, log-probs and update. That
  backend computes attention over whole rectangles, so the plan is asked for those.
- Memory: the peak of resident memory over that behind the loading, in a fresh process, against the
  plan's moments, gradients, activations and workspace.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import kernels
from bench.memory import MIB, status
from trainer import step
from trainer.metrics import MicroBatch
from trainer.model import has_bfloat16
from trainer.plan.demand import MicroBatchPlan, demands
from trainer.plan.settings import Asked, read_asked
from trainer.plan.walk import PASS, walk_step
from trainer.preflight import build_trainer
from trainer.step import Trainer
from trainer.types import Advantages, PackedBatch

FREED = {"MALLOC_MMAP_THRESHOLD_": str(MIB), "MALLOC_TRIM_THRESHOLD_": "0"}  # as in bench.memory


class Inside(TorchDispatchMode):
    """Runs our ops as the aten ops they are made of, for the counter below."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """The op, or its body."""
        if func.namespace == "lcpo":
            return torch._library.custom_ops.OPDEFS[func._schema.name]._init_fn(*args)
        return func(*args, **(kwargs or {}))


def ask(folder: Path | None, dtype: str, tokens: int, prompts: int) -> Asked:
    """A step of which one micro-batch has about so many tokens."""
    overrides = ["+experiment=l1_exact", "scale=embedded", "hardware=1xcpu"]
    overrides += [f"model.dtype={dtype}", f"train.micro_batch_tokens={tokens}"]
    overrides += [f"rollout.prompts={prompts}", "rollout.samples=8", "rollout.batch_size=32"]
    overrides += ["memory.activations=none", "data.embedded_rows=8", "evaluate.problems=1"]
    if folder:
        overrides += [f"model.path={folder}", "data.require_think=false"]
        overrides += ["data.max_prompt_tokens=512"]
    return read_asked(overrides)


def largest(asked: Asked) -> MicroBatchPlan:
    """The micro-batch with the most tokens."""
    batches = [b for demand in demands(asked) for update in demand.updates for b in update]
    return max(batches, key=lambda batch: batch.work.tokens)


def packed(asked: Asked, batch: MicroBatchPlan) -> PackedBatch:
    """Its tensors."""
    ids = [[[1] * n for n in sizes] for sizes in (batch.prompts, batch.responses)]
    weights = torch.full((len(batch.prompts),), 1e-3)
    return step.pack(*ids, weights, range(len(batch.prompts)), "cpu", batch.groups)


def update(trainer: Trainer, batch: PackedBatch) -> None:
    """Forward and backward pass of the loss."""
    count = len(batch.samples)
    micro = MicroBatch(batch, None, torch.zeros(len(batch.targets)))
    loss, _ = step.policy_loss(trainer, micro, Advantages(*(torch.ones(count),) * 4))
    loss.backward()


def rectangles(batch: PackedBatch) -> int:
    """Pairs of a query and a key that the torch backend multiplies, masked ones too."""
    lengths = [b - a for a, b in pairwise(batch.cu_seqlens.tolist())]
    before = [-1] * len(lengths) if batch.prefix is None else batch.prefix.tolist()
    return sum(
        n * (n + (lengths[p] if p >= 0 else 0)) for n, p in zip(lengths, before, strict=True)
    )


def flops_row(asked: Asked) -> Iterator[dict[str, Any]]:
    """FLOPs of log-probs and of the update, planned and counted."""
    trainer, batch = build_trainer(asked.config)[0], largest(asked)
    tensors = packed(asked, batch)
    work = dataclasses.replace(batch.work, pairs=rectangles(tensors))
    planned = walk_step(asked, dataclasses.replace(batch, work=work), asked.config.rollout.prompts)
    vocab_size = asked.model.vocab_size

    def logprob() -> None:
        with torch.no_grad():
            step.logprobs(asked.config, trainer.working, tensors, vocab_size)

    parts = {"logprob": logprob, "update": lambda: update(trainer, tensors)}
    for name, run in parts.items():
        with kernels.override("torch"), FlopCounterMode(display=False) as counter, Inside():
            run()
        found = sum(record.flops for record in getattr(planned, name).records)
        yield {"what": f"FLOPs, {name}", "planned": found, "measured": counter.get_total_flops()}


def memory_row(asked: Asked, arguments: Sequence[str]) -> dict[str, Any]:
    """Peak bytes beyond what was loaded, planned and measured in a process of its own."""
    planned = walk_step(asked, largest(asked), asked.config.rollout.prompts).memory["update"]
    command = [sys.executable, "-m", "bench.plan", "--measure", *arguments]
    ran = subprocess.run(command, env=os.environ | FREED, check=True, stdout=subprocess.PIPE)
    beyond = sum(planned[part] for part in ("moments", "gradients", *PASS))
    return {"what": "bytes, update", "planned": beyond, "measured": int(ran.stdout.split()[-1])}


def print_peak(asked: Asked) -> None:
    """In the fresh process: two micro-batches of one update, behind the optimizer's first step."""
    trainer, batch = build_trainer(asked.config)[0], largest(asked)
    tensors = packed(asked, batch)
    first = MicroBatchPlan(batch.prompts[:1], [1], None, batch.work)
    before = status("VmRSS")
    update(trainer, packed(asked, first))
    trainer.optimizer.step()
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    update(trainer, tensors)
    update(trainer, tensors)
    print(status("VmHWM") - before)


def main() -> None:
    """The command line; writes OUT/plan.json and prints it as a table."""
    parser = argparse.ArgumentParser(prog="python -m bench.plan", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, help="SmolLM2; left out: embedded only")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--dtype", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print_peak(ask(args.folder, args.dtype, args.tokens, 8 if args.folder else 64))
        return
    rows = []
    for folder in dict.fromkeys((None, args.folder)):
        for dtype in ("float32", "bfloat16") if has_bfloat16("cpu") else ("float32",):
            # A small model's activations must be large beside what libraries take.
            tokens = args.tokens if folder else 8 * args.tokens
            asked = ask(folder, dtype, tokens, 8 if folder else 64)
            again = [f"--dtype={dtype}", f"--tokens={tokens}", *([str(folder)] if folder else [])]
            found = [memory_row(asked, again)]
            if dtype == "float32":
                found += flops_row(asked)
            for row in found:
                row |= {"model": folder.name if folder else "embedded", "dtype": dtype}
                row["ratio"] = row["planned"] / row["measured"]
                print(
                    f"{row['model']:12} {dtype:9} {row['what']:15} planned {row['planned']:.4g} "
                    f"measured {row['measured']:.4g} ratio {row['ratio']:.3f}",
                    flush=True,
                )
            rows += found
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "plan.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
