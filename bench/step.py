"""`python -m bench.step [FOLDER]`: a whole training step, TRL beside it, and what it is made of.

FOLDER holds SmolLM2-135M (`python -m bench.smollm2 FOLDER`); a 1.3 M model is made here. TRL runs
in its own environment, `--trl FOLDER`, set up when it is not there; "--trl none" does without.

- A whole GRPO step, sampling to optimizer, against TRL's GRPOTrainer: the same model, prompts,
  group and lengths. All completions equally long, and ragged ones. TRL's precision (float32,
  autocast, all in bfloat16) and micro-batch are tried first and its fastest is taken. Then steps
  are interleaved, a process each; peak memory is all that a process took beyond its imports. In
  these processes threads spin while they wait, OpenMP's default: on idle cores both are faster.
- Forward and backward of packed ragged tokens against transformers on padded rows, and on equal
  lengths that need no padding; the share of the rate of a large product in the same dtype.
- The cost of a sequence's length, and of more sequences, at equal total tokens.
- The profile of one step: every op above 1% of its time.

Figures go to OUT/bench/step.csv and, between its markers, OUT/benchmarks.md, part by part as they
are found: `--parts` measures some and leaves the tables of the others. OUT is docs, or runs/bench
with --quick, whose sizes only show that all of it works.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench import machine, step_report
from bench.process import Process, environment_python
from bench.step_parts import lengths_part, pass_part, profile_part
from trainer.embedded.tokenizer import build_tokenizer
from trainer.model import Decoder, ModelConfig, has_bfloat16, save_model
from trainer.preflight import load_tokenizer

HERE = Path(__file__).parent
PRECISIONS = ("float32", "autocast", "bfloat16")  # of TRL
TRL = ("trl>=1.16,<2", "datasets")
SPINNING = {"GOMP_SPINCOUNT": "300000"}  # 3 ms, as without bench's OMP_WAIT_POLICY

Row = dict[str, Any]


@dataclass(frozen=True)
class Subject:
    """A model and the step that is taken with it."""

    name: str
    folder: Path
    completions: int
    group: int
    prompt_tokens: int
    new_tokens: int
    micro_batches: tuple[int, ...]  # of TRL, tried in turn

    def job(self, lengths: str, **settings: Any) -> dict[str, Any]:
        """What a process of either side is told; lengths: "equal" or "ragged"."""
        rng = random.Random(0)
        drawn = [
            rng.randint(self.new_tokens // 8, self.new_tokens) for _ in range(self.completions)
        ]
        same = [self.new_tokens] * self.completions
        return {
            "folder": str(self.folder),
            "group": self.group,
            "lengths": same if lengths == "equal" else drawn,
            "prompts": [prompt_text(self.folder, self.prompt_tokens)],
        } | settings


def prompt_text(folder: Path, tokens: int) -> str:
    """A text of so many tokens."""
    tokenizer, _ = load_tokenizer(folder)
    text = ""
    while len(tokenizer.encode(text)) < tokens:
        text += f"{len(text) % 7}+"
    ids = tokenizer.encode(text)[:tokens]
    return tokenizer.decode(ids)


def step_part(subject: Subject, trl: str | None, rounds: int) -> list[Row]:
    """Whole steps of ours and of the fastest TRL, equal and ragged."""
    rows = []
    dtype = "bfloat16" if has_bfloat16("cpu") else "float32"
    command = [sys.executable, "-m", "bench.step_ours"]
    theirs = [trl, str(HERE / "step_trl.py")] if trl else None
    best: dict[str, Any] = {}
    if theirs:
        tried = tune(subject, theirs)
        rows += tried
        fastest = min(tried, key=lambda row: row["seconds"])
        best = {key: fastest[key] for key in ("dtype", "micro_batch")}
    for lengths in ("equal", "ragged"):
        sides = {
            f"ours, {dtype}{case}": Process(
                command, subject.job(lengths, dtype=dtype, share=share), SPINNING
            )
            for case, share in (("", True), (", a prompt a sample", False))
        }
        if theirs:
            name = f"TRL, {best['dtype']}, micro-batch {best['micro_batch']}"
            sides[name] = Process(theirs, subject.job(lengths, **best), SPINNING)
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(rounds + 1):  # the first one warms up
            for name, process in sides.items():
                took = process.step()
                if number:
                    seconds[name].append(took)
        for name, process in sides.items():
            rows.append(
                {"part": "step", "model": subject.name, "case": lengths, "contender": name}
                | {"seconds": statistics.median(seconds[name]), "peak_mib": process.end()}
            )
    return [row | {"omp_policy": "default"} for row in rows]


def tune(subject: Subject, theirs: list[str]) -> list[Row]:
    """A warm step of TRL in each precision and micro-batch, equal lengths."""
    rows = []
    for dtype in PRECISIONS:
        for micro_batch in subject.micro_batches:
            setting = {"dtype": dtype, "micro_batch": micro_batch}
            process = Process(theirs, subject.job("equal", **setting), SPINNING)
            process.step()
            seconds = process.step()
            rows.append(
                {"part": "tuning TRL", "model": subject.name, "case": "equal", **setting}
                | {"contender": f"TRL, {dtype}, micro-batch {micro_batch}"}
                | {"seconds": seconds, "peak_mib": process.end()}
            )
            print(rows[-1], flush=True)
    return rows


def small_model(folder: Path) -> Path:
    """A random 1.3 M model with the embedded tokenizer."""
    tokenizer = build_tokenizer()
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model = Decoder(ModelConfig("llama", 320, 128, 352, 6, 4, 4, 32, **ids))
    model.init_weights(0)
    save_model(model, folder)
    tokenizer.save_pretrained(folder)
    return folder


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.step", description=__doc__)
    parser.add_argument(
        "folder", nargs="?", type=Path, help="SmolLM2; left out: the small one only"
    )
    parser.add_argument("--trl", default="runs/trl", help='its environment, or "none"')
    parser.add_argument("--parts", default="step,pass,lengths,profile")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(arguments)
    if not args.quick:
        machine.warn_if_busy()
    trl = None if args.trl == "none" else environment_python(Path(args.trl), TRL)
    out = args.out or Path("runs/bench" if args.quick else "docs")
    with tempfile.TemporaryDirectory() as temporary:
        small = small_model(Path(temporary))
        subjects = [Subject("1.3 M", small, 64, 8, 24, 128, (16, 32, 64))]
        if args.quick:
            subjects = [Subject("1.3 M", small, 4, 2, 5, 8, (4,))]
        if args.folder:
            subjects.append(Subject("SmolLM2-135M", args.folder, 16, 8, 46, 48, (4, 8, 16)))
        total = 64 if args.quick else 4096
        for subject in subjects:
            parts = {
                "step": lambda s=subject: step_part(s, trl, args.rounds),
                "pass": lambda s=subject: pass_part(s.name, s.folder, total, args.rounds),
                "lengths": lambda s=subject: lengths_part(s.name, s.folder, 2 * total, args.rounds),
                "profile": lambda s=subject: profile_part(s.name, s.job("equal")),
            }
            for name in args.parts.split(","):
                busy = machine.busy()
                rows = parts[name]()
                for row in rows:
                    print(row, flush=True)
                about = machine.describe(torch.device("cpu")) | {"load": f"{busy:.1f}"}
                step_report.write(out, [about | row for row in rows])


if __name__ == "__main__":
    main()
