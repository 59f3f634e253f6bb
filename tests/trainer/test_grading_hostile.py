"""Nothing a model writes hangs, crashes or runs anything (T21 for the exact parser, T23).

The time bound is for hangs: each case takes milliseconds, and the bound allows a busy machine.
"""

import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.grading import grade
from trainer.grading.parse import parse, same_answer
from trainer.types import Problem

HANG_SECONDS = 5.0
SEVENTEEN = Problem("p", "q", ("17",))

ANSWERS = {
    "power tower": "9**9**9",
    "five storeys": "9^{9^{9^{9^{9}}}}",
    "unbraced tower": "9^9^9^9^9",
    "pi power": r"\pi^{99999999999}",
    "factorial": "99999999!",
    "factorial of a power": "(10^9)!",
    "overflow": "1e400",
    "huge exponent": "1e999999999",
    "inf": "inf",
    "nan": "nan",
    "huge radicand": r"\sqrt{" + "9" * 150 + "}",
    "hard radicand": r"\sqrt{999962000357}",  # a product of two primes near 10^6
    "division by zero": r"\frac{1}{0}",
    "zero in disguise": r"\frac{17}{0\sqrt2}",
    "root of a negative": r"\sqrt{-4}",
    "parentheses": "(" * 400 + "17" + ")" * 400,
    "open parentheses": "(" * 900,
    "brackets": "[(" * 200 + "1,2" + "])" * 200,
    "braces": "{" * 450 + "17" + "}" * 450,
    "fractions": r"\frac{1}{" * 80 + "17" + "}" * 80,
    "roots": r"\sqrt{" * 120 + "17" + "}" * 120,
    "unbraced roots": r"\sqrt" * 190 + "17",
    "unbraced fractions": r"\frac" * 190 + "17",
    "pi tower": r"\pi^" * 240 + "2",
    "sums": "+".join(["1"] * 450),
    "signs": "-" * 900 + "17",
    "plus-minus": r"\pm1" * 200,
    "commas": "," * 900,
    "spaces": "1" + " " * 900 + "7",
    "unicode digits": "١٧",
    "escaped digits": r"\1\7",
    "superscripts": "1⁷",
    "NUL": "\x0017",
    "lone surrogate": "\ud80017\udfff",
    "import": "__import__('os').system('touch HACKED')",
    "class": "().__class__.__bases__[0].__subclasses__()",
    "index": r"[open('HACKED','w')][0] or 2*\pi",
    "matrix": "Matrix([[open('HACKED', 'w')]])",
    "input": r"\input{/etc/passwd}",
    "write18": r"\immediate\write18{touch HACKED}",
    "lambda": "(lambda: open('HACKED','w'))()",
    "format": "{0.__class__}%s%n",
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS.keys())
def test_t21_t23_hostile_answer_is_wrong_and_harmless(
    answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    started = time.perf_counter()
    score = grade(rf"</think>\boxed{{{answer}}}", SEVENTEEN)
    assert (score.value, score.reason) == (0.0, "wrong")
    as_truth = grade(r"</think>\boxed{17}", Problem("p", "q", (answer,)))
    assert as_truth.reason == "wrong"
    assert time.perf_counter() - started < HANG_SECONDS
    assert list(tmp_path.iterdir()) == []
    assert grade(r"</think>\boxed{17}", SEVENTEEN).reason == "correct"


TEXTS = {
    "dollars": (r"</think>\boxed{" + "$" * 20_000 + "}", "too_long"),
    "parentheses": (r"</think>\boxed{" + "(" * 4_000 + "17" + ")" * 4_000 + "}", "too_long"),
    "digits": (r"</think>\boxed{" + "9" * 5_000 + "}", "too_long"),
    "boxes": ("</think>" + r"\boxed{" * 20_000, "no_answer"),
    "closed boxes": ("</think>" + r"\boxed{" * 20_000 + "}" * 20_000, "wrong"),
    "empty boxes": ("</think>" + r"\boxed{}" * 20_000, "wrong"),
    "boxed boxed": ("</think>" + r"\boxed" * 20_000, "no_answer"),
    "bare boxes": ("</think>" + r"\boxed5" * 20_000, "wrong"),
    "bare box without an end": (r"</think>\boxed " + "x" * 1_000_000, "too_long"),
    "bare box, long tail": (r"</think>\boxed 18 " + "x" * 1_000_000, "wrong"),
    "braces": ("</think>" + "{" * 500_000 + "}" * 500_000, "no_answer"),
    "backslashes": ("</think>" + "\\" * 1_000_001, "no_answer"),
    "tags": ("</think>" * 100_000, "no_answer"),
    "surrogates": ("\ud800" * 100_000, "no_think"),
}


@pytest.mark.parametrize(("text", "reason"), TEXTS.values(), ids=TEXTS.keys())
def test_t21_hostile_text_is_extracted_in_linear_time(text: str, reason: str) -> None:
    started = time.perf_counter()
    assert grade(text, SEVENTEEN).reason == reason
    assert time.perf_counter() - started < HANG_SECONDS
    assert grade(text + r"</think>\boxed{17}", SEVENTEEN).reason == "correct"


def test_every_regular_expression_survives_long_repeats() -> None:
    fragments = (" ", "1", "1 ", "1,", ",", "1,\\!", r"\!", r"\text{", r"\text{a}", "^", "_", "{")
    fragments += ("}", "$", r"\frac", r"\frac1", r"\sqrt", "x=", "and ", " or", "a ", ".", "%")
    fragments += (r"\begin{", r"\\", "&", r"\left", r"\ ", r"\pm", r"\cup", "(", "[1,", r"\{")
    started = time.perf_counter()
    for fragment in fragments:
        for ending in ("", "17", "}"):
            parse((fragment * 1_000)[: 1_000 - len(ending)] + ending)
    assert time.perf_counter() - started < HANG_SECONDS


MACROS = (r"\frac", r"\sqrt", r"\pi", r"\pm", r"\{", r"\}", r"\infty", r"\cup", r"\text", r"\le")
MACROS += (r"\approx", r"\\", r"\!", r"\cdot", r"\circ", r"\frac{1}{2}", r"\text{ cm}", r"\left(")
MACROS += (r"\begin{pmatrix}", r"\end{pmatrix}")
PIECES = st.sampled_from([*"0123456789+-*/^_()[]{},;=%$!.xie \\", *MACROS])


@settings(max_examples=600, deadline=None, derandomize=True, database=None)
@given(st.lists(PIECES, max_size=25).map("".join) | st.text(max_size=40))
def test_any_text_gets_a_value_equal_to_itself(text: str) -> None:
    answer = parse(text)
    assert hash(answer) is not None
    assert same_answer(text, text) == (answer.value != "")
