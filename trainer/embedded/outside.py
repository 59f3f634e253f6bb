"""Sums outside what the embedded model was trained on, all drawn from held-out multisets."""

from __future__ import annotations

import random

from trainer.embedded.task import split_of
from trainer.types import Problem

# name: (how many numbers, their range), both inclusive; task.py trains on (3, 6) and (2, 25).
OUTSIDE = {
    "embedded_long": ((7, 9), (2, 25)),
    "embedded_large": ((3, 6), (26, 60)),
}


def make_outside(seed: int, index: int, kind: str) -> Problem:
    """Problem `index` of an out-of-distribution set: a pure function of its arguments."""
    terms, span = OUTSIDE[kind]
    rng = random.Random(f"{seed}/{kind}/{index}")
    while True:
        numbers = [rng.randint(*span) for _ in range(rng.randint(*terms))]
        if split_of(numbers) == "heldout":
            break
    return Problem(f"{kind}-{index}", "+".join(map(str, numbers)) + "=?", (str(sum(numbers)),))
