"""Chains of thought for the embedded task, to an exact number of tokens or as long as they take.

Short chains add several numbers at once or answer directly; longer ones go number by number; the
longest check their lines again ("wait "). A line may slip; a later check finds and mends it. Where
the length is exact, the last tokens of room are filled with the start of a fixed remark.

A chain is a list of pieces, each one token of the embedded tokenizer (a test checks that).
"""

from __future__ import annotations

import random
from dataclasses import dataclass

SLIP = 0.06  # chance that a line goes wrong: what checking is good for
REMARK = "so that is the sum and now it only needs to be written down as the answer here then "
FILLERS = [word + " " for word in REMARK.split()]
CHECK = "wait "
THINK_END, BOX, BOX_END, EOS = "</think>", "\\boxed{", "}", "<|end|>"
MIN_LENGTH = 8


@dataclass
class Line:
    """One line of working: `start` plus the terms is claimed to be `result`."""

    start: int
    terms: list[int]
    result: int

    @property
    def truth(self) -> int:
        return self.start + sum(self.terms)

    def pieces(self, result: int) -> list[str]:
        """The line as tokens, claiming `result`."""
        return [*"+".join(map(str, [self.start, *self.terms])), "=", *str(result), "\n"]


def closing(answer: int) -> list[str]:
    """What ends every chain: `</think>`, the boxed answer and the end token."""
    return [THINK_END, BOX, *str(answer), BOX_END, EOS]


def write_chain(numbers: list[int], length: int, rng: random.Random) -> list[str]:
    """A chain of exactly `length` tokens (at least MIN_LENGTH), the finest steps that fit first."""
    pieces, answer = _work(numbers, length, rng)
    room = length - len(pieces) - len(closing(answer))
    return pieces + [FILLERS[i % len(FILLERS)] for i in range(room)] + closing(answer)


def write_natural_chain(numbers: list[int], room: int, rng: random.Random) -> list[str]:
    """At most `room` tokens: as long as the sum asks for, some of its lines checked, no remark."""
    pieces, answer = _work(numbers, room, rng, checks=rng.randint(0, len(numbers) - 1))
    return pieces + closing(answer)


def _work(
    numbers: list[int], length: int, rng: random.Random, checks: int | None = None
) -> tuple[list[str], int]:
    """Lines, then as many checks as fit (at most `checks`), and the answer they come to."""
    if length < MIN_LENGTH:
        raise ValueError(f"a chain needs at least {MIN_LENGTH} tokens, got {length}")
    pieces: list[str] = []
    lines = _finest_lines(numbers, length, rng)
    for line in lines:
        pieces += line.pieces(line.result)
    answer = lines[-1].result if lines else sum(numbers)
    position = 0
    while lines and position != checks:
        more, mended = _check(lines, position % len(lines))
        after = mended[-1].result
        if len(pieces) + len(more) + len(closing(after)) > length:
            break
        pieces, lines, answer, position = pieces + more, mended, after, position + 1
    return pieces, answer


def _finest_lines(numbers: list[int], length: int, rng: random.Random) -> list[Line]:
    """As many lines as fit into `length` with the closing; none means answering directly."""
    for count in range(len(numbers) - 1, 0, -1):
        lines = _lines(numbers, count, rng)
        cost = sum(len(line.pieces(line.result)) for line in lines)
        if cost + len(closing(lines[-1].result)) <= length:
            return lines
    return []


def _lines(numbers: list[int], count: int, rng: random.Random) -> list[Line]:
    """The additions spread over `count` lines as evenly as they go, slips included."""
    terms, start, lines = numbers[1:], numbers[0], []
    for left in range(count, 0, -1):
        take = -(-len(terms) // left)
        line = Line(start, terms[:take], 0)
        line.result = line.truth
        if rng.random() < SLIP:
            line.result = max(1, line.truth + rng.choice((-10, -1, 1, 10)))
        lines.append(line)
        terms, start = terms[take:], line.result
    return lines


def _check(lines: list[Line], position: int) -> tuple[list[str], list[Line]]:
    """Check one line; if it had slipped, also work out again all that came after it."""
    line = lines[position]
    pieces = [CHECK, *line.pieces(line.truth)]
    if line.result == line.truth:
        return pieces, lines
    mended = [*lines[:position], Line(line.start, line.terms, line.truth)]
    for later in lines[position + 1 :]:
        start = mended[-1].result
        mended.append(Line(start, later.terms, start + sum(later.terms)))
        pieces += mended[-1].pieces(mended[-1].result)
    return pieces, mended
