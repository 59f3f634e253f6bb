"""Grading: the answer in the last box against the accepted answers, exactly and in bounded time.

Imports neither torch nor kernels, so that a grading worker starts light. Nothing a model wrote
is ever evaluated: the text is tokenised, read by a small grammar, and compared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer.grading.choice import same_choice
from trainer.grading.extract import last_box
from trainer.grading.parse import same_answer
from trainer.types import Score

if TYPE_CHECKING:
    from trainer.types import Problem

# The last two come from the worker processes of the symbolic tier: nobody knows what is right.
UNGRADED = ("timeout", "crashed")
REASONS = ("correct", "wrong", "no_answer", "no_think", "too_long", *UNGRADED)

# The longest answer of MATH has 159 characters. The cap bounds every later step of grading.
MAX_ANSWER_CHARS = 1_000


def grade(text: str, problem: Problem, *, require_think: bool = True) -> Score:
    """Score one completion: 1.0 when its answer matches any accepted answer, else 0.0.

    `text` is the decoded completion after the prompt. The answer is the last box after the last
    `</think>`; with `require_think` a text without that tag is incorrect (`no_think`), as in L1's
    grader, and so is one without a box (`no_answer`). Never raises on any text.
    """
    _, tag, tail = text.rpartition("</think>")
    if require_think and not tag:
        return Score(0.0, "no_think", None)
    answer = last_box(tail)
    if answer is None:
        return Score(0.0, "no_answer", None)
    if len(answer) > MAX_ANSWER_CHARS:
        return Score(0.0, "too_long", answer[:MAX_ANSWER_CHARS])
    same = same_choice if problem.kind == "choice" else same_answer
    if any(same(answer, truth) for truth in problem.answers):
        return Score(1.0, "correct", answer)
    return Score(0.0, "wrong", answer)
