"""`make results`, or `python -m trainer.results`: train, evaluate, judge.

Trains embedded L1-Exact and from it L1-Max with three seeds, and L1-Exact with one thing changed at
a time; evaluates them and every baseline on held-out problems, and writes docs/results.md. A
process a core works at it. Whatever is complete under --root is not done again, so an interrupted
command goes on, and more seeds or ablations add to the same document.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

# Before torch: a spin-waiting OpenMP team collapses when another process wants its core.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from trainer.checkpoint import CheckpointError
from trainer.config import ConfigError
from trainer.results.document import write_document
from trainer.results.plan import (
    ABLATIONS,
    BUDGETS,
    SKIP,
    Plan,
    base_stages,
    chains,
)
from trainer.results.stages import evaluation_of, run_chains


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code: 0, or 2 with a message for what a user can mend."""
    args = _parser().parse_args(arguments)
    try:
        plan = _plan(args)
        seconds = run(plan, args.jobs)
    except (ValueError, CheckpointError) as error:  # ConfigError is a ValueError
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    write_document(plan, args.out)
    print(f"done: {args.out}; its stages took {seconds / 60:.0f} minutes, one after another")
    return 0


def run(plan: Plan, jobs: int) -> float:
    """Every stage of the plan, `jobs` at a time; the seconds they took in sum, now or earlier.

    Raises ValueError for what a user can mend.
    """
    base = base_stages(plan)["base"]
    run_chains([[base]], jobs)  # its mean length is a budget of others
    (row,) = evaluation_of(base)["rows"]
    return run_chains(chains(plan, row["mean_tokens"]), jobs)


def _plan(args: argparse.Namespace) -> Plan:
    problems, samples = (8, 1) if args.quick else (500, 2)
    return Plan(
        root=args.root or Path("runs/results-quick" if args.quick else "runs/results"),
        model=args.model,
        problems=args.problems or problems,
        samples=args.samples or samples,
        seeds=args.seeds or (1 if args.quick else 3),
        ablations=not args.quick if args.ablations is None else args.ablations,
        quick=args.quick,
        train=tuple(args.train),
        budgets=_numbers("--budgets", args.budgets),
        skip=_numbers("--skip", args.skip),
    )


def _cores() -> int:
    """That this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(map(int, text.split(",")))
    except ValueError as error:
        raise ConfigError(f"{option}: expected numbers with commas, got {text}") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m trainer.results", description=__doc__)
    parser.add_argument("--root", type=Path, help="runs and evaluations; runs/results if left out")
    parser.add_argument("--out", type=Path, default=Path("docs/results.md"), help="the document")
    parser.add_argument("--model", default="embedded", help="the base, as model.path")
    parser.add_argument("--problems", type=int, help="held-out problems an evaluation")
    parser.add_argument("--samples", type=int, help="samples a problem and budget")
    for option, default, says in (
        ("--budgets", BUDGETS, "four, ascending; they are judged"),
        ("--skip", SKIP, "budgets that training never draws"),
    ):
        parser.add_argument(option, default=",".join(map(str, default)), help=says)
    parser.add_argument("--seeds", type=int, help="training seeds, from 0 on; 3 if left out")
    parser.add_argument(
        "--ablations", action=argparse.BooleanOptionalAction, help=", ".join(ABLATIONS)
    )
    parser.add_argument(
        "--jobs", type=int, default=_cores(), help="processes at once; one a core if left out"
    )
    parser.add_argument("--quick", action="store_true", help="minutes, to see it work; no result")
    parser.add_argument("train", nargs="*", help="overrides of every training run: train.steps=40")
    return parser


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what runs saves and ends
    sys.exit(main())
