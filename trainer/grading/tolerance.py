"""Numbers within a tolerance of the truth, for data sets that give one (OlympiadBench)."""

from __future__ import annotations

from collections.abc import Hashable
from fractions import Fraction
from itertools import zip_longest
from math import pi, sqrt

from trainer.grading.parse import parse


def within(answer: str, truth: str, tolerance: float) -> bool:
    r"""Whether each number of `answer` is at most `tolerance` from its counterpart in `truth`.

    Lists are compared in ascending order, as solutions come in any. Surds, π and percent are read
    as their values; whatever holds anything but real numbers is never within.
    """
    left, right = _numbers(parse(answer).value), _numbers(parse(truth).value)
    if not left or not right:
        return False
    pairs = zip_longest(sorted(left), sorted(right), fillvalue=float("inf"))
    return all(abs(a - b) <= tolerance * (1 + 1e-9) for a, b in pairs)


def _numbers(value: Hashable) -> list[float] | None:
    """The real numbers of a canonical value (see parse.py); None when it is anything else."""
    try:
        if isinstance(value, Fraction):
            return [float(value)]
        if isinstance(value, frozenset):
            if any(e for (_, _, e), _ in value):
                return None
            return [sum(float(q) * sqrt(r) * pi**k for (r, k, _), q in value)]
        if isinstance(value, tuple) and value[0] == "percent":
            return [float(value[1]) / 100]
        if isinstance(value, tuple) and value[0] == "set":
            parts = [_numbers(item) for item, count in value[1] for _ in range(count)]
            return None if None in parts else [x for part in parts for x in part]
    except OverflowError:
        return None
    return None
