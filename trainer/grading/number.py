r"""Exact numbers in the only shapes that a final answer has, and a refusal to do sums.

A number is a sum of terms q · √r · π^k · i^e with rational q, squarefree r and e in {0, 1},
held as {(r, k, e): q}. Rewriting one *value* is allowed (1/√3 = √3/3, 2/4 = 1/2); *computing* one
is not: 3+14, 3·4, √144 and 2^{10} are NotExact. A grader that evaluates them would pay a policy
for boxing the question's own expression, which is what a short token budget invites.
"""

from __future__ import annotations

from fractions import Fraction
from math import gcd, isqrt

Number = dict[tuple[int, int, int], Fraction]

ONE = (1, 0, 0)
MAX_RADICAND = 10**12  # taking the square part out costs its cube root in divisions


class NotExact(Exception):
    """The tokens are not a number in final form; the answer is compared as a string."""


def rational(value: Fraction) -> Number:
    """A rational constant."""
    return {ONE: value}


def as_rational(number: Number) -> Fraction:
    """The value of a rational constant; NotExact for anything else."""
    if number.keys() != {ONE}:
        raise NotExact
    return number[ONE]


def add(left: Number, right: Number) -> Number:
    """Join two sums; like terms (3+14) are a computation and refused."""
    if left.keys() & right.keys():
        raise NotExact
    return left | right


def negate(number: Number) -> Number:
    """Change the sign of every term."""
    return {key: -q for key, q in number.items()}


def multiply(left: Number, right: Number) -> Number:
    """Set a coefficient beside a root, π, i or a sum; two of a kind (3·4, √2·√3) are refused."""
    if len(left) > 1:
        left, right = right, left
    if len(left) > 1:
        raise NotExact
    ((r, k, e), q) = next(iter(left.items()))
    if len(right) == 1:
        ((r2, k2, e2), q2) = next(iter(right.items()))
        if (q != 1 and q2 != 1) or (r > 1 and r2 > 1) or (k and k2) or (e and e2):
            raise NotExact
        if (r, k, e) == ONE == (r2, k2, e2):
            raise NotExact
    elif r > 1 or e:
        raise NotExact
    return {(r * r2, k + k2, e + e2): q * q2 for (r2, k2, e2), q2 in right.items()}


def divide(left: Number, right: Number) -> Number:
    """Divide by one term, the root in the denominator rationalised; by a sum is refused.

    Of two rationals both must be integers: 2/4 is a value, (2/5)/(3/7) is an exercise.
    """
    if len(right) > 1:
        raise NotExact
    ((r, k, e), q) = next(iter(right.items()))
    if q == 0:
        raise NotExact
    if left.keys() == right.keys() == {ONE} and left[ONE].denominator * q.denominator > 1:
        raise NotExact
    result: Number = {}
    for (r2, k2, e2), q2 in left.items():
        # √r2 / √r = √(r2 r) / r with r2 r = g² · (r2/g)(r/g), g the common factor; 1/i = -i.
        common = gcd(r, r2)
        sign = -1 if e and not e2 else 1
        key = (r * r2 // common**2, k2 - k, e2 ^ e)
        result[key] = sign * q2 / q * Fraction(common, r)
    return result


def root(value: Fraction) -> Number:
    """√value with its square part taken out; perfect squares, negatives and giants are refused."""
    radicand = value.numerator * value.denominator  # √(a/b) = √(ab) / b
    if not 1 < radicand <= MAX_RADICAND:
        raise NotExact
    outside, inside, rest, divisor = 1, 1, radicand, 2
    while divisor**3 <= rest:
        while rest % divisor**2 == 0:
            rest //= divisor**2
            outside *= divisor
        if rest % divisor == 0:
            rest //= divisor
            inside *= divisor
        divisor += 1
    # No prime up to its cube root divides the rest: it is 1, p, p² or p·q.
    if isqrt(rest) ** 2 == rest:
        outside *= isqrt(rest)
    else:
        inside *= rest
    if inside == 1:
        raise NotExact
    return {(inside, 0, 0): Fraction(outside, value.denominator)}


def freeze(number: Number) -> Fraction | frozenset[tuple[tuple[int, int, int], Fraction]]:
    """The canonical hashable value: a Fraction when rational, else the set of non-zero terms."""
    terms = {key: q for key, q in number.items() if q}
    if not terms.keys() - {ONE}:
        return terms.get(ONE, Fraction(0))
    return frozenset(terms.items())
