"""The figures of one data set and budget. Every sample counts once, however many tokens it has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from typing import Any

import numpy as np

from trainer.grading.choice import same_choice
from trainer.grading.parse import same_answer

SOFT = 1.1  # times the budget: what a soft violation is more than
INTERVAL = (0.025, 0.975)


@dataclass(frozen=True)
class Figures:
    """How figures are made, apart from the samples."""

    bootstrap: int  # resamples of the problems
    seed: int


def figures(rows: Sequence[dict[str, Any]], budget: int, how: Figures) -> dict[str, Any]:
    """Accuracy and length figures of the sample rows of one data set, budget and mode.

    `rows` are those of samples.jsonl. With `budget` 0 there was none, and what compares with it is
    None. `deviation` is the paper's, |mean n_y - n_gold| / n_gold, in which errors cancel;
    `sample_deviation` is the mean over samples.
    """
    by_problem = group(rows)
    right = [[row["correct"] for row in group] for group in by_problem]
    n = min(map(len, right))
    low, high = bootstrap_interval([sum(r) / len(r) for r in right], how)
    powers = [k for k in (2**i for i in range(11)) if k < n] + [n]
    used = np.array([row["tokens"] for row in rows], dtype=float)
    return {
        "n": n,
        "problems": len(by_problem),
        "pass1": float(np.mean([sum(r) / len(r) for r in right])),
        "pass1_low": low,
        "pass1_high": high,
        "pass_k": {str(k): mean_pass_at_k(right, k) for k in powers},
        "maj_k": {str(k): majority_at_k(by_problem, k) for k in powers},
        "mean_tokens": float(used.mean()),
        **length_figures(used, budget),
        "truncated": float(np.mean([row["truncated"] for row in rows])),
        "reasons": {k: c / len(rows) for k, c in Counter(r["reason"] for r in rows).most_common()},
    }


def length_figures(used: np.ndarray, budget: int) -> dict[str, float | None]:
    """Tokens used [N] against a budget; see `figures`. All None for budget 0."""
    names = ("deviation", "sample_deviation", "rmse", "bias", "over", "soft_over")
    if not budget:
        return dict.fromkeys(names)
    away = used - budget
    values = (
        abs(used.mean() - budget) / budget,
        (np.abs(away) / budget).mean(),
        np.sqrt((away**2).mean()),
        away.mean(),
        (used > budget).mean(),
        (used > SOFT * budget).mean(),
    )
    return dict(zip(names, map(float, values), strict=True))


def group(rows: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The rows of each problem, by sample number."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["problem_id"], []).append(row)
    return [sorted(found[name], key=lambda row: row["k"]) for name in sorted(found)]


def bootstrap_interval(accuracies: Sequence[float], how: Figures) -> tuple[float, float]:
    """95% percentile interval of the mean over problems, drawn again with replacement.

    Problems are drawn, not samples: samples of one problem are alike, and problems are what
    another test set would have other ones of.
    """
    values = np.array(accuracies)
    rng = np.random.default_rng(how.seed)
    draws = rng.integers(0, len(values), (how.bootstrap, len(values)))
    low, high = np.quantile(values[draws].mean(1), INTERVAL)
    return float(low), float(high)


def pass_at_k(n: int, right: int, k: int) -> float:
    """Chance that k of n samples, of which `right` are correct, hold a correct one: unbiased.

    arXiv 2107.03374, eq. 1: 1 - C(n - right, k) / C(n, k).
    """
    return 1.0 - comb(n - right, k) / comb(n, k)


def mean_pass_at_k(right: Sequence[Sequence[bool]], k: int) -> float:
    """pass@k over problems, each with the verdicts of its samples."""
    return float(np.mean([pass_at_k(len(r), sum(r), k) for r in right]))


def majority_at_k(by_problem: Sequence[Sequence[dict[str, Any]]], k: int) -> float:
    """maj@k: the verdict of the most frequent answer among k samples; mean over blocks of k."""
    verdicts = []
    for samples in by_problem:
        blocks = [samples[i : i + k] for i in range(0, len(samples) - k + 1, k)]
        verdicts.append(np.mean([_majority(block) for block in blocks]))
    return float(np.mean(verdicts))


def _majority(samples: Sequence[dict[str, Any]]) -> bool:
    """Samples without an answer do not vote; the earliest answer wins a tie."""
    votes: list[tuple[dict[str, Any], int]] = []
    for sample in samples:
        if sample["answer"] is None:
            continue
        for i, (first, count) in enumerate(votes):
            if _same(first["answer"], sample["answer"]):
                votes[i] = (first, count + 1)
                break
        else:
            votes.append((sample, 1))
    return bool(votes) and max(votes, key=lambda vote: vote[1])[0]["correct"]


def _same(left: str, right: str) -> bool:
    return left == right or same_choice(left, right) or same_answer(left, right)
