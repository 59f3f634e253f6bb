"""Exact numbers against complex floats on random LaTeX, and the refusals of `number.py`."""

import cmath
import math
import random
from fractions import Fraction

import pytest

from trainer.grading import number
from trainer.grading.normalise import tokenise
from trainer.grading.number import NotExact, Number
from trainer.grading.reader import MAX_DEPTH, read_number


def to_complex(value: Number) -> complex:
    return sum((float(q) * math.sqrt(r) * math.pi**k * 1j**e for (r, k, e), q in value.items()), 0j)


def random_term(rng: random.Random, depth: int) -> tuple[str, complex]:
    """A random LaTeX term and its value by floats."""
    kind = rng.choice(("int", "decimal", "sqrt", "pi", "i", "frac", "slash", "group", "product"))
    if kind == "decimal":
        text = f"{rng.randint(0, 9)}.{rng.randint(0, 99):02d}"
        return text, complex(float(text))
    if kind == "sqrt":
        n, d = rng.randint(2, 60), rng.randint(1, 9)
        text = rf"\sqrt{{{n}}}" if d == 1 else rf"\sqrt{{\frac{{{n}}}{{{d}}}}}"
        return text, cmath.sqrt(n / d)
    if kind == "pi":
        k = rng.randint(1, 3)
        return rf"\pi^{{{k}}}", complex(math.pi**k)
    if kind == "i":
        return "i", 1j
    if kind == "int" or depth == 0:
        n = rng.randint(1, 60)
        return str(n), complex(n)
    (left, a), (right, b) = random_sum(rng, depth - 1), random_term(rng, depth - 1)
    if kind == "frac":
        return rf"\frac{{{left}}}{{{right}}}", a / b if b else cmath.nan
    if kind == "slash":
        return rf"({left})/{{{right}}}", a / b if b else cmath.nan
    return (f"({left})", a) if kind == "group" else (rf"({left})\cdot({right})", a * b)


def random_sum(rng: random.Random, depth: int) -> tuple[str, complex]:
    text, value = random_term(rng, depth)
    while rng.random() < 0.3:
        sign = rng.choice("+-")
        more, b = random_term(rng, depth)
        text, value = f"{text} {sign} {more}", value + (b if sign == "+" else -b)
    return text, value


def test_exact_values_agree_with_floats() -> None:
    rng = random.Random(0)
    read = 0
    for _ in range(5_000):
        text, expected = random_sum(rng, 2)
        try:
            value = read_number(tokenise(text))
        except NotExact:
            continue
        read += 1
        assert to_complex(value) == pytest.approx(expected, rel=1e-9, abs=1e-9), text
    assert read > 1_500  # the others are computations, which are refused


@pytest.mark.parametrize("n", [2, 8, 12, 50, 99, 360, 1_000_003, 999_983**2 // 2, 10**12 - 1])
def test_root_takes_the_square_part_out(n: int) -> None:
    (((radicand, _, _), outside),) = number.root(Fraction(n)).items()
    assert outside**2 * radicand == n
    assert all(radicand % p**2 for p in range(2, 1_000))


@pytest.mark.parametrize("value", [0, 1, 4, 144, -2, 10**12 + 1, Fraction(1, 4), Fraction(-1, 2)])
def test_root_refuses(value: int | Fraction) -> None:
    with pytest.raises(NotExact):
        number.root(Fraction(value))


COMPUTATIONS = ["1+1", "2*3", r"\sqrt2\sqrt3", r"\sqrt2+\sqrt8", r"(1+\sqrt2)(1+\sqrt3)", "ii"]
COMPUTATIONS += [r"\frac{0.5}{2}", r"\frac{1}{1+\sqrt2}", "1/2/3", "1/0", "2^2", "1--1", r"\pi\pi"]
MALFORMED = ["", "+", "1+", "*2", "(1", "1)", "(1}", r"\frac1", r"\sqrt", r"\pi^{1/2}", r"\pi^{-1}"]
MALFORMED += [r"\sqrt[3]{2}", "1 2", "1 2/0", "1 3/2", r"1/2\pi", ".", r"\0", "x", "9" * 201]


@pytest.mark.parametrize("text", COMPUTATIONS + MALFORMED)
def test_refused(text: str) -> None:
    with pytest.raises(NotExact):
        read_number(tokenise(text))


def test_depth_is_bounded() -> None:
    depth = MAX_DEPTH - 1
    assert read_number(list("(" * depth + "7" + ")" * depth)) == {number.ONE: 7}
    for nested in ("(" * MAX_DEPTH + "7" + ")" * MAX_DEPTH, r"\sqrt" * MAX_DEPTH + "7"):
        with pytest.raises(NotExact):
            read_number(tokenise(nested))
