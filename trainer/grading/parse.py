r"""The exact parser: one answer's text to a canonical, hashable value.

Structure first (unions, lists, sets, tuples and intervals, matrices), then each leaf by a small
recursive descent (`reader.py`) over exact numbers (`number.py`). What is not a number in final
form stays a normalised string. No floats, no evaluation, bounded depth and digits: any text gets
a value.

Canonical values: Fraction | frozenset of terms (surds, π, i) | str | a tuple whose first item
names the structure. Two answers are the same when their canonical values are equal.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable
from fractions import Fraction
from typing import NamedTuple

from trainer.grading import number
from trainer.grading.normalise import compact, tokenise
from trainer.grading.number import NotExact
from trainer.grading.reader import MAX_DEPTH, read_number

BRACKETS = {"(", "[", "{", r"\{"}  # a tuple or interval begins with its own
_OPEN = {*BRACKETS, r"\begin{pmatrix}"}
_CLOSE = {")", "]", "}", r"\}", r"\end{pmatrix}"}
_LIST = {",", ";"}
_RELATION = {"=", "<", ">", ":", "|", r"\le", r"\ge", r"\ne", r"\in", r"\to", r"\mid"}
_NAME = re.compile(r"[A-Za-z]+|\\[a-z]+|[A-Za-z]\([a-z]\)|[A-Za-z]_\w")
_INFINITY = {(r"\infty",): 1, ("+", r"\infty"): 1, ("-", r"\infty"): -1}


class Answer(NamedTuple):
    """A parsed answer, e.g. `x = \\frac{1}{2}` is Answer("x", Fraction(1, 2))."""

    name: str | None  # what stands left of a single "=" or "\\in"
    value: Hashable  # "" when nothing is there


def same_answer(answer: str, truth: str) -> bool:
    r"""Whether two texts are the same answer by exact value, else by normalised string.

    `10\%` equals both `10` and `0.1`, as in the field's graders, because questions ask for either
    form. Two different names (`x = 1`, `y = 1`) are different answers; one missing name is not.
    Nothing equals the empty answer, not even itself.
    """
    left, right = parse(answer), parse(truth)
    if left.value == "" or (left.name and right.name and left.name != right.name):
        return False
    return _same_value(left.value, right.value)


def parse(text: str) -> Answer:
    r"""Read one answer. Never raises, on any text.

    Of `\frac{2}{3} \approx 0.67` the exact side is read; of `x \approx 0.67` the only one there is.
    """
    exact, *rounded = _split(tokenise(text), {r"\approx"})
    if rounded and (not exact or _NAME.fullmatch(compact(exact))):
        exact = rounded[0]
    name, tokens = _split_name(exact)
    return Answer(name, _read(tokens, 0))


def _same_value(left: Hashable, right: Hashable) -> bool:
    if left == right:
        return True
    for one, other in ((left, right), (right, left)):
        if isinstance(one, tuple) and one[0] == "percent" and isinstance(other, Fraction):
            return other in (one[1], one[1] / 100)
    return False


def _split(tokens: list[str], separators: set[str]) -> list[list[str]]:
    """Split at separators outside brackets; always at least one part."""
    parts: list[list[str]] = [[]]
    depth = 0
    for token in tokens:
        depth += (token in _OPEN) - (token in _CLOSE)
        if depth == 0 and token in separators:
            parts.append([])
        else:
            parts[-1].append(token)
    return parts


def _split_name(tokens: list[str]) -> tuple[str | None, list[str]]:
    r"""Take `x =` off `x = 3` and off every item of `x = 3, x = 4`; leave `x = 3, y = 4` alone."""
    items = _split(tokens, _LIST)
    names, stripped = set(), []
    for item in items:
        sides = _split(item, {"=", r"\in"})
        name = compact(sides[0])
        if len(sides) > 1 and (not name or _NAME.fullmatch(name)):
            names.add(name)
            item = item[len(sides[0]) + 1 :]
        stripped.append(item)
    if len(names) != 1:
        return None, tokens
    return names.pop() or None, [t for item in stripped for t in (",", *item)][1:]


def _read(tokens: list[str], depth: int) -> Hashable:
    """The canonical value of any expression."""
    if depth > MAX_DEPTH:
        return compact(tokens)
    pieces = _split(tokens, {r"\cup"})
    if len(pieces) > 1:
        return ("union", frozenset(_read(piece, depth + 1) for piece in pieces))
    if _is_enclosed(tokens) and (tokens[0] == r"\{" or r"\pm" not in tokens):
        return _read_enclosed(tokens, depth + 1)
    items = [signed for item in _split(tokens, _LIST) for signed in _expand_signs(item)]
    if len(items) > 1:
        return _list([_read(item, depth + 1) for item in items])
    sides = _split(tokens, {"="})
    if len(sides) > 1:
        values = [_read(side, depth + 1) for side in sides]
        exact = not any(isinstance(value, str) for value in values)
        if exact and all(_same_value(values[0], value) for value in values):
            return values[0]  # "0.56 = 56\%"
        return ("equation", tuple(values))
    return _read_scalar(tokens, depth)


def _list(items: list[Hashable]) -> Hashable:
    """Solutions come in any order; words may answer "in which order", so theirs is kept."""
    if any(isinstance(item, str) for item in items):
        return ("words", tuple(items))
    return ("set", frozenset(Counter(items).items()))


def _expand_signs(tokens: list[str]) -> list[list[str]]:
    r"""`1 \pm 2` is the two answers `1 + 2` and `1 - 2`; several `\pm` are left as they are."""
    if tokens.count(r"\pm") != 1:
        return [tokens]
    at = tokens.index(r"\pm")
    return [[*tokens[:at], sign, *tokens[at + 1 :]] for sign in "+-"]


def _is_enclosed(tokens: list[str]) -> bool:
    """Whether the first token opens a bracket that the last token closes."""
    if len(tokens) < 2 or tokens[0] not in _OPEN or tokens[-1] not in _CLOSE:
        return False
    depth = 0
    for token in tokens[:-1]:
        depth += (token in _OPEN) - (token in _CLOSE)
        if depth == 0:
            return False
    return depth == 1


def _read_enclosed(tokens: list[str], depth: int) -> Hashable:
    opening, inner, closing = tokens[0], tokens[1:-1], tokens[-1]
    if opening == r"\begin{pmatrix}":
        rows = [row for row in _split(inner, {r"\\"}) if row]
        cells = (tuple(_read(cell, depth) for cell in _split(row, {"&"})) for row in rows)
        return ("matrix", tuple(cells))
    items = _split(inner, _LIST)
    if opening == r"\{":
        signed = [one for item in items for one in _expand_signs(item)]
        return ("set", frozenset(Counter(_read(item, depth) for item in signed).items()))
    if len(items) > 1:
        return (opening, closing, tuple(_read(item, depth) for item in items))
    # Only brackets that group may go: (5) and {5} are 5, but [5] is a floor, a class or a list.
    return _read(inner, depth) if opening in "({" and inner else compact(tokens)


def _read_scalar(tokens: list[str], depth: int) -> Hashable:
    if tuple(tokens) in _INFINITY:
        return ("infinity", _INFINITY[tuple(tokens)])
    try:
        if tokens[-1:] == ["%"]:
            return ("percent", number.as_rational(read_number(tokens[:-1], depth)))
        return number.freeze(read_number(tokens, depth))
    except NotExact:
        return _read_sum(tokens, depth)


def _read_sum(tokens: list[str], depth: int) -> Hashable:
    """Terms in any order (`x + 1` is `1 + x`), nothing expanded, collected or factored."""
    terms: list[list[str]] = [[]]
    level = 0
    for previous, token in zip(["(", *tokens], tokens, strict=False):
        level += (token in _OPEN) - (token in _CLOSE)
        if token in _RELATION:
            return compact(tokens)
        if level == 0 and token in "+-" and (previous[-1].isalnum() or previous in _CLOSE):
            terms.append([])
        if token != "+" or terms[-1]:
            terms[-1].append(token)
    if len(terms) == 1:
        return compact(tokens)
    return ("sum", frozenset(Counter(_read_term(term, depth) for term in terms).items()))


def _read_term(tokens: list[str], depth: int) -> Hashable:
    try:
        return number.freeze(read_number(tokens, depth))
    except NotExact:
        return compact(tokens)
