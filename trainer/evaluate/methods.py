"""What each local method asks of the engine: one request for each problem, budget and sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from kernels import count_lengths
from trainer.data.prompts import encode_prompt
from trainer.evaluate.settings import EvaluationSettings, S1Settings
from trainer.rollout import Forced, Forcing, Request
from trainer.seeds import derive_seed
from trainer.types import Problem


@dataclass(frozen=True)
class Job:
    """One sample to draw: which problem of which data set, at which budget, the how-manieth."""

    data: str
    problem: Problem
    budget: int  # 0: none
    k: int

    @property
    def key(self) -> tuple[str, str, int, int]:
        """What a row of samples.jsonl is known by."""
        return (self.data, self.problem.id, self.budget, self.k)


def jobs(settings: EvaluationSettings, sets: Sequence[tuple[str, Sequence[Problem]]]) -> list[Job]:
    """Every sample of an evaluation. Without a budget in prompt or decoding there is one row, 0."""
    free = settings.mode == "none" and settings.method in ("generate", "api")
    budgets = (0,) if free else settings.budgets
    return [
        Job(name, problem, budget, k)
        for name, problems in sets
        for budget in budgets
        for problem in problems
        for k in range(settings.n)
    ]


def token_limit(settings: EvaluationSettings, budget: int) -> int:
    """Most tokens of a response. Truncation and S1 hold the budget by themselves."""
    if not budget:
        return settings.max_tokens
    if settings.method in ("truncate", "s1"):
        return budget
    return round(settings.limit_factor * budget)


def local_request(
    settings: EvaluationSettings, job: Job, tokenizer: PreTrainedTokenizerBase
) -> Request:
    """The request of a job. Its seed does not name the method: truncation cuts equal samples."""
    prompt = encode_prompt(tokenizer, job.problem.question, settings.mode, job.budget)
    # Where no budget is in the prompt, nothing but the cut depends on it.
    asked = 0 if settings.mode == "none" else job.budget
    seed = derive_seed(settings.seed, "evaluate", asked, job.problem.id, job.k)
    limit = token_limit(settings, job.budget)
    expected = job.budget or limit
    if settings.method != "s1":
        return Request(prompt, seed, limit, expected)
    forcing = s1_forcing(settings.s1, job.budget, tokenizer)
    # A budget below the forced answer cannot be kept; it is overrun, and counted.
    least = 1 + len(_encode(tokenizer, settings.s1.final)) + settings.s1.answer_tokens
    return Request(prompt, seed, max(limit, least), expected, forcing)


def s1_forcing(s1: S1Settings, budget: int, tokenizer: PreTrainedTokenizerBase) -> Forcing:
    """S1 in both directions: think until only the answer fits, "Wait" instead of an early end.

    Forced tokens and the answer are within `budget`, so S1 is compared at equal tokens *used*.
    The end of the thinking is EOS or a one-token `</think>`; other tokenizers know EOS only.
    """
    wait, final = _encode(tokenizer, s1.wait), _encode(tokenizer, s1.final)
    think_end = _encode(tokenizer, "</think>")
    stops = {tokenizer.eos_token_id, *(think_end if len(think_end) == 1 else ())}
    think = max(1, budget - len(final) - s1.answer_tokens)

    def then(ids: Sequence[int]) -> Forced | None:
        if count_runs(ids, final):
            return None
        early = ids[-1] in stops
        room = think - (len(ids) - early) - len(wait)
        if early and room > 0 and count_runs(ids, wait) < s1.waits:
            return Forced(wait, room, replace=True)
        return Forced(final, s1.answer_tokens, replace=early)

    return Forcing(think, tuple(stops), then)


def count_runs(ids: Sequence[int], run: Sequence[int]) -> int:
    """How often `run` stands in `ids`, overlaps included."""
    first, width, run = run[0], len(run), tuple(run)
    return sum(one == first and tuple(ids[i : i + width]) == run for i, one in enumerate(ids))


def think_length(ids: Sequence[int], think_end: Sequence[int]) -> int:
    """Tokens up to and with the first `</think>`; all of them where there is none."""
    bounds = torch.tensor([0, len(ids)], dtype=torch.int32)
    # Completions end at their EOS, so there is none to look for.
    lengths = count_lengths(
        torch.tensor(ids, dtype=torch.int64), bounds, eos_id=-1, think_end=tuple(think_end)
    )
    return int(lengths.n_think)


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    return tuple(tokenizer.encode(text, add_special_tokens=False))
