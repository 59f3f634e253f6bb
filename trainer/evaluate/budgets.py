"""Held-out problems x budgets: accuracy, tokens used, and how far they are from those asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from trainer.config import EvaluateSettings
from trainer.data.prompts import encode_prompt
from trainer.evaluate.figures import length_figures
from trainer.grading.grader import Grader
from trainer.metrics import correlation
from trainer.packing import deal
from trainer.rollout import Request, RolloutEngine, Sampling
from trainer.seeds import derive_seed
from trainer.types import Completion, Problem
from trainer.world import ALONE, World


def evaluate(
    settings: EvaluateSettings,
    problems: Sequence[Problem],
    engine: RolloutEngine,
    tokenizer: PreTrainedTokenizerBase,
    *,
    mode: str,
    grader: Grader,
    seed: int,
    world: World = ALONE,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """{"overall": {...}, "budgets": [{...}], "used": [[asked, used, correct], ...]}.

    The seeds depend on budget, problem and sample only, so two evaluations of one model are equal,
    whatever the number of ranks that draw the samples.
    """
    asked, requests, owners = [], [], []
    for budget in settings.budgets:
        for problem in problems:
            token_ids = encode_prompt(tokenizer, problem.question, mode, budget)
            for k in range(settings.samples):
                path = (seed, "evaluate", budget, problem.id, k)
                limit = round(settings.limit_factor * budget)
                requests.append(Request(token_ids, derive_seed(*path), limit, expected=budget))
                asked.append(budget)
                owners.append(problem)
    sampling = Sampling(settings.temperature, settings.top_p)
    shares = deal(asked, world.size)
    with world.together():
        mine = [requests[i] for i in shares[world.rank]]
        drawn = engine.generate(mine, sampling, on_progress)
    parts = zip(shares, world.gather(drawn), strict=True)
    by_place = {i: c for share, part in parts for i, c in zip(share, part, strict=True)}
    completions: list[Completion] = [by_place[i] for i in range(len(requests))]
    texts = tokenizer.batch_decode([c.token_ids for c in completions])
    for index, (text, problem) in enumerate(zip(texts, owners, strict=True)):
        grader.submit(index, text, problem)
    graded = grader.collect(on_progress)
    scores = [graded[index].value for index in range(len(owners))]
    used = [len(c.token_ids) for c in completions]
    return summary(np.array(asked), np.array(used), np.array(scores))


def summary(asked: np.ndarray, used: np.ndarray, correct: np.ndarray) -> dict[str, Any]:
    """Figures by budget and over all; every argument is [N].

    deviation: mean over samples of |used - asked| / asked. mean_deviation: the paper's,
    |mean used - asked| / asked by budget, which forgives errors that cancel. Overall values are
    plain means over budgets; the correlations are over all samples.
    """
    rows = []
    for budget in np.unique(asked):
        mine = asked == budget
        n = used[mine].astype(float)
        lengths = length_figures(n, int(budget))
        rows.append(
            {
                "budget": int(budget),
                "samples": int(mine.sum()),
                "accuracy": float(correct[mine].mean()),
                "mean_tokens": float(n.mean()),
                "deviation": lengths["sample_deviation"],
                "mean_deviation": lengths["deviation"],
                "rmse": lengths["rmse"],
                "over_budget": lengths["over"],
            }
        )
    names = ("accuracy", "mean_tokens", "deviation", "mean_deviation", "rmse", "over_budget")
    overall = {name: float(np.mean([row[name] for row in rows])) for name in names}
    overall["correlation"] = correlation(asked.astype(float), used.astype(float))
    overall["rank_correlation"] = correlation(ranks(asked), ranks(used))
    triples = [[int(a), int(u), int(c)] for a, u, c in zip(asked, used, correct, strict=True)]
    return {"overall": overall, "budgets": rows, "used": triples}


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks with ties averaged: Pearson's correlation of ranks is Spearman's."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[place]
