"""`python -m bench.exact [--model FOLDER]`: exact rollouts' cost, times a default step.

Whole steps of L1-Exact, sampling to optimizer, on one thread: as they are by default, and with
rollout.batch_invariant=true and algorithm.old_logprob=rollout. Both train in turn, a step each,
after one to warm up, so whatever else the machine does meets both. The model is the embedded one,
or that of FOLDER (`python -m bench.smollm2 FOLDER`) in float32, with fewer and shorter samples.
The medians and their ratio are printed, and the largest gap between a log-prob of the rollouts and
the trainer's: 0.0 where it is exact.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence

import torch

from trainer import step
from trainer.preflight import build_trainer
from trainer.run import compose_config

EXACT = ("rollout.batch_invariant=true", "algorithm.old_logprob=rollout")
PARTS = ("rollout", "old_logprob", "update")
OTHER = (
    *("model.dtype=float32", "data.require_think=false", "data.max_prompt_tokens=512"),
    *("rollout.prompts=4", "rollout.samples=4", "rollout.max_response_tokens=96"),
    *("budget.max=96", "train.micro_batch_tokens=2048", "optim.lr=1e-6"),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.exact", description=__doc__)
    parser.add_argument("--model", help="a model folder; left out: the embedded model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("settings", nargs="*", metavar="NAME=VALUE", help="of both, as in a run")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    model = [f"model.path={args.model}", *OTHER] if args.model else []
    both = ["+experiment=l1_exact", "evaluate.problems=1", *model, *args.settings]
    sides = {"default": both, "exact": [*both, *EXACT]}
    trainers = {name: build_trainer(compose_config(asked))[0] for name, asked in sides.items()}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    gaps = dict.fromkeys(sides, 0.0)
    for number in range(args.rounds + 1):
        for name, trainer in trainers.items():
            start = time.perf_counter()
            stats = step.train_step(trainer)
            took = time.perf_counter() - start
            gaps[name] = max(gaps[name], stats.metrics["policy/rollout_gap_max"])
            parts = ", ".join(f"{part} {stats.seconds[part]:.2f}" for part in PARTS)
            print(f"round {number}, {name}: {took:.2f} s ({parts})", flush=True)
            if number:
                seconds[name].append(took)
    for name, found in seconds.items():
        print(f"{name}: {statistics.median(found):.2f} s a step, gap at most {gaps[name]:.2g}")
    ratios = [b / a for a, b in zip(*seconds.values(), strict=True)]
    print(
        f"cost of batch_invariant, times a default step: {statistics.median(ratios):.2f} "
        f"(median of {args.rounds} rounds, {min(ratios):.2f} to {max(ratios):.2f})"
    )


if __name__ == "__main__":
    main()
