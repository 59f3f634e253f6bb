"""Sums outside what RL trains on, all drawn from held-out multisets.

The base has met such sums in its corpus, as a language model has met much more than what RL is
done on; whether control of the length carries over to them is the question.
"""

from __future__ import annotations

import random

from trainer.embedded.task import as_problem, draw
from trainer.types import Problem

# name: (how many numbers, their range), both inclusive; task.py trains on (4, 8) and (1, 9).
OUTSIDE = {
    "embedded_large": ((4, 8), (10, 25)),
    "embedded_wide": ((4, 8), (1, 25)),  # one problem in 200 has digits only
    "embedded_long": ((9, 10), (1, 9)),
}
JUDGED = ("embedded_large", "embedded_wide")  # claim 6; docs/results.md says why the third is not


def make_outside(seed: int, index: int, kind: str) -> Problem:
    """Problem `index` of an out-of-distribution set: a pure function of its arguments."""
    rng = random.Random(f"{seed}/{kind}/{index}")
    return as_problem(f"{kind}-{index}", draw(rng, "heldout", *OUTSIDE[kind]))
