"""What bench.grading asks the tiers: nasty answers, pairs of answers, expressions of questions."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from trainer.data.problems import load_problems

SEED = 0
CHARS = 1_000  # of a question's expression: the grader's own cap

NASTY = {
    "`18`": "18",
    "`9**9**9`": "9**9**9",
    "five storeys, `9^{9^{9^{9^{9}}}}`": "9^{9^{9^{9^{9}}}}",
    "`99999999!`": "99999999!",
    "`(10^9)!`": "(10^9)!",
    "`\\binom{10^6}{5 \\cdot 10^5}`": r"\binom{10^6}{5\cdot10^5}",
    "`\\sum_{k=1}^{10^9} \\frac1k`": r"\sum_{k=1}^{10^9}\frac{1}{k}",
    "`\\int_0^1 x^{x^x} dx`": r"\int_0^1 x^{x^x} dx",
    "`(x+1)^{200}(x-1)^{200}`": r"(x+1)^{200}(x-1)^{200}",
    "root of 150 nines": r"\sqrt{" + "9" * 150 + "}",
    "900 nines": "9" * 900,
    "400 parentheses": "(" * 400 + "17" + ")" * 400,
    "450 braces": "{" * 450 + "17" + "}" * 450,
    "80 nested fractions": r"\frac{1}{" * 80 + "17" + "}" * 80,
    "450 terms": "+".join(["1"] * 450),
    "200 plus-minus": r"\pm1" * 200,
    "900 signs": "-" * 900 + "17",
    "900 commas": "," * 900,
    "`1e400`": "1e400",
    "NUL and a lone surrogate": "\x0017\ud800",
    "`__import__('os').system('x')`": "__import__('os').system('x')",
    "`().__class__.__bases__`": "().__class__.__bases__",
}

REWRITES: dict[str, Callable[[str], str]] = {
    "dfrac": lambda text: re.sub(r"\\[dt]?frac", r"\\dfrac", text),
    "left right": lambda text: re.sub(
        r"(?<!left)\(", r"\\left(", re.sub(r"(?<!right)\)", r"\\right)", text)
    ),
    "dollars": lambda text: f"${text}$",
    "full stop": lambda text: f"{text}.",
    "thin space": lambda text: text.replace("=", r"\,=\,"),
    "trailing .0": lambda text: f"{text}.0" if re.fullmatch(r"-?\d+", text) else text,
    "unit": lambda text: rf"{text}\text{{ cm}}" if re.fullmatch(r"-?\d+", text) else text,
    "x =": lambda text: f"x = {text}" if re.fullmatch(r"-?\d+", text) else text,
}
# (answer, truth) of neighbours on which the tiers were seen to differ, by hand.
JUDGED = {
    (r"25\%", "25"): "same: questions ask for percent in either form",
    ("2x - y + 2z - 18 = 0", "0"): "different: an equation is not its right side",
}
_MATHEMATICS = re.compile(r"\$([^$]+)\$|\\\[(.+?)\\\]", re.DOTALL)
_OPERATION = re.compile(r"[+*^!]|\d\s*-|\\cdot|\\times|\\div|\\sum|\\log")


class Pair(NamedTuple):
    """An answer against a truth; kind is "itself", "rewrite" or "neighbour"."""

    kind: str
    answer: str
    truth: str


def read_truths(folder: Path) -> list[tuple[str, str]]:
    """(question, answer) of every row of the folder's *.jsonl, by name. ValueError when none."""
    files = sorted(folder.glob("*.jsonl"))
    if not files:
        raise ValueError(f"{folder} has no *.jsonl")
    return [
        (problem.question, problem.answers[0])
        for file in files
        for problem in load_problems(str(file)).problems
    ]


def pairs(truths: Sequence[str]) -> list[Pair]:
    """Each distinct truth with itself and a rewrite that changes it; each row with the next."""
    rng = random.Random(SEED)
    found = []
    for truth in dict.fromkeys(truths):
        found.append(Pair("itself", truth, truth))
        changed = {text for rewrite in REWRITES.values() if (text := rewrite(truth)) != truth}
        found.append(Pair("rewrite", rng.choice(sorted(changed)), truth))
    neighbours = dict.fromkeys((a, b) for a, b in pairwise(truths) if a != b)
    return [*found, *(Pair("neighbour", a, b) for a, b in neighbours)]


def boxed_questions(rows: Sequence[tuple[str, str]]) -> list[tuple[str, Pair]]:
    """(question, expression of it against its truth), for expressions that hold an operation.

    Not those that are the truth as it is written.
    """
    found = []
    for question, truth in rows:
        for dollars, brackets in _MATHEMATICS.findall(question):
            text = (dollars or brackets)[:CHARS].strip()
            if _OPERATION.search(text) and text != truth:
                found.append((question, Pair("question", text, truth)))
    return found
