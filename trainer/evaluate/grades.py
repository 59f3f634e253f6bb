"""Grades of an evaluation's samples: the tiers of a run, and a tolerance where the set has one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from trainer.evaluate.methods import Job
from trainer.evaluate.settings import EvaluationSettings
from trainer.grading import UNGRADED
from trainer.grading.grader import Grader
from trainer.grading.tolerance import within
from trainer.preflight import build_grader
from trainer.types import Problem, Score


def graded(
    settings: EvaluationSettings, wanted: Sequence[Job], rows: Iterable[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Each row of `rows`, samples of `wanted`, with its grade.

    One at a time, as what is drawn is kept at once. ConfigError for a tier that is not installed.
    """
    problems = {(job.data, job.problem.id): job.problem for job in wanted}
    # The alarm is for the whole evaluation: one of one is no share.
    tiers = dataclasses.replace(settings.grading, alarm_share=1.0)
    grader = build_grader(tiers, settings.require_think)
    try:
        for row in rows:
            score = grade_within(grader, row["text"], problems[row["data"], row["problem_id"]])
            correct = score.value == 1.0
            yield row | {"correct": correct, "reason": score.reason, "answer": score.extracted}
    finally:
        grader.close()


def grade_within(grader: Grader, text: str, problem: Problem) -> Score:
    """The grade; where the problem has a tolerance, a number that close is right as well."""
    grader.submit(0, text, problem)
    score = grader.collect()[0]
    if problem.tolerance and score.reason in ("wrong", *UNGRADED):
        answers = problem.answers
        if any(within(score.extracted, truth, problem.tolerance) for truth in answers):
            return Score(1.0, "correct", score.extracted)
    return score
