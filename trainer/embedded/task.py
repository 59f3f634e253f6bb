"""Sums of four to eight digits: endless, verifiable, and easier the longer one thinks.

Every problem is a pure function of (seed, index, split). Train and held-out problems are disjoint
by construction: the *multiset* of the numbers decides the split, so not even a reordering leaks.
"""

from __future__ import annotations

import hashlib
import random

from trainer.types import Problem

SPLITS = ("train", "heldout")
TERMS = (4, 8)  # how many numbers, inclusive
NUMBERS = (1, 9)  # their range, inclusive
HELDOUT_SHARE = 8  # one multiset in so many is held out


def split_of(numbers: list[int]) -> str:
    """The split that owns this multiset of numbers: a hash, so no list of problems is kept."""
    digest = hashlib.sha256(",".join(map(str, sorted(numbers))).encode()).digest()
    return "heldout" if digest[0] % HELDOUT_SHARE == 0 else "train"


def draw(
    rng: random.Random, split: str, terms: tuple[int, int], span: tuple[int, int]
) -> list[int]:
    """So many numbers of a range, both inclusive, drawn again until `split` owns their multiset."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r} of the embedded task; there are {SPLITS}")
    while True:
        numbers = [rng.randint(*span) for _ in range(rng.randint(*terms))]
        if split_of(numbers) == split:
            return numbers


def draw_numbers(seed: int, index: int, split: str) -> list[int]:
    """The numbers of problem `index` of the task."""
    return draw(random.Random(f"{seed}/{split}/{index}"), split, TERMS, NUMBERS)


def make_problem(seed: int, index: int, split: str) -> Problem:
    """Problem `index` of a split. Example: Problem("train-4", "3+9+7+4=?", ("23",))."""
    return as_problem(f"{split}-{index}", draw_numbers(seed, index, split))


def as_problem(name: str, numbers: list[int]) -> Problem:
    """Numbers as a problem with their sum as the answer."""
    return Problem(name, "+".join(map(str, numbers)) + "=?", (str(sum(numbers)),))
