"""`python -m trainer.generate --budget 64 "3+4+5=?"`: an answer as it comes, its length."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

# Before torch: a spin-waiting OpenMP team collapses when another process wants its core.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from transformers import PreTrainedTokenizerBase

from trainer.data.prompts import encode_prompt
from trainer.model import load_model
from trainer.preflight import find_device, find_model, load_tokenizer
from trainer.rollout import Request, RolloutEngine, Sampling
from trainer.types import Completion

UNFINISHED = "\ufffd"  # what a tokenizer shows for part of a character


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; exits with 2 and one line for what a user can mend."""
    parser = argparse.ArgumentParser(prog="python -m trainer.generate", description=__doc__)
    parser.add_argument("question")
    parser.add_argument("--budget", type=int, default=64, help="tokens asked for")
    parser.add_argument("--model", default="embedded", help="as model.path: folder, run, Hub id")
    parser.add_argument("--mode", choices=("exact", "max", "none"), default="exact")
    parser.add_argument("--temperature", type=float, default=0.6, help="0 is greedy")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, help="most tokens; twice the budget if left out")
    args = parser.parse_args(arguments)
    try:
        run(args)
    except ValueError as error:  # ConfigError is one
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(2)


def run(args: argparse.Namespace) -> None:
    """Load, ask, show. Raises ValueError for a model, budget or temperature that cannot be."""
    if args.budget < 1:
        raise ValueError(f"--budget must be at least 1, got {args.budget}")
    folder = find_model(args.model)
    tokenizer, _ = load_tokenizer(folder)
    device = find_device("auto")
    dtype = "bfloat16" if device == "cuda" else "float32"
    engine = RolloutEngine(
        load_model(folder, dtype=getattr(torch, dtype), device=device),
        eos_id=tokenizer.eos_token_id,
        vocab_size=len(tokenizer),
        batch_size=1,
    )
    prompt = encode_prompt(tokenizer, args.question, args.mode, args.budget)
    request = Request(prompt, args.seed, args.limit or 2 * args.budget)
    completion = show(engine, request, Sampling(args.temperature), tokenizer)
    asked = "no budget" if args.mode == "none" else f"{args.budget} requested ({args.mode})"
    cut = ", cut off" if completion.truncated else ""
    print(f"\n{len(completion.token_ids)} tokens used{cut}, {asked}")


def _write(text: str) -> None:
    print(text, end="", flush=True)


def show(
    engine: RolloutEngine,
    request: Request,
    sampling: Sampling,
    tokenizer: PreTrainedTokenizerBase,
    write: Callable[[str], object] = _write,
) -> Completion:
    """The completion of one request, its text written as far as it is certain, token by token."""
    ids: list[int] = []
    written = 0

    def on_token(index: int, token: int) -> None:
        nonlocal written
        ids.append(token)
        text = tokenizer.decode(ids)
        if not text.endswith(UNFINISHED):
            write(text[written:])
            written = len(text)

    ((_, completion),) = engine.stream([request], sampling, on_token=on_token)
    write(tokenizer.decode(ids)[written:])
    return completion


if __name__ == "__main__":
    main()
