"""The grading truth table (T24): what is extracted, what is equal, and which reason is given."""

import subprocess
import sys
from pathlib import Path

import pytest

from trainer.grading import MAX_ANSWER_CHARS, REASONS, grade
from trainer.grading.choice import read_choice
from trainer.grading.extract import last_box
from trainer.grading.parse import same_answer
from trainer.types import Problem

ROOT = Path(__file__).resolve().parents[2]

BOXES = [
    (r"so \boxed{5}.", "5"),
    (r"\boxed{1} and \boxed{2}", "2"),
    (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
    (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
    (r"\boxed{a \boxed{b} c}", "b"),
    (r"\boxed{a \boxed{b", None),
    (r"\boxed{3} then \boxed{4", "3"),
    (r"\boxed{\boxed{4}", "4"),
    (r"{ { \boxed{5} then }", "5"),
    (r"\boxed {5}", "5"),
    (r"\boxed 5", "5"),
    (r"$\boxed 17$ is it", "17"),
    (r"\boxed 5<|im_end|>", "5"),
    (r"\boxed{3} \boxed 4", "4"),
    (r"\fbox{5}", "5"),
    (r"\boxed{}", ""),
    (r"\boxed{  }", ""),
    (r"\boxed", None),
    (r"\boxed}", None),
    (r"\boxedtext{5}", None),
    (r"\\boxed{5}", None),  # a line break and the word "boxed"
    ("the answer is 5", None),
    ("", None),
]


@pytest.mark.parametrize(("text", "content"), BOXES)
def test_t24_last_box(text: str, content: str | None) -> None:
    assert last_box(text) == content


EQUAL = [
    # integers, decimals, fractions
    ("17", "17"),
    ("17.0", "17"),
    ("+17", "17"),
    ("017", "17"),
    (" 17 . ", "17"),
    ("$17$", "17"),
    (r"\(17\)", "17"),
    ("{17}", "17"),
    ("−17", "-17"),
    (".5", r"\frac12"),
    ("1/2", r"\dfrac{1}{2}"),
    (r"\frac{2}{4}", r"\tfrac12"),
    (r"\frac 1 2", "0.50"),
    (r"\frac{-7}{23}", r"-\frac{7}{23}"),
    (r"\frac9{19}", r"\frac{9}{19}"),
    (r"\dfrac{1}{29,\!322,\!216}", "1/29322216"),
    # mixed numbers
    ("1 1/2", "3/2"),
    (r"1\frac{2}{3}", r"\frac53"),
    (r"-15 \frac{3}{5}", "-15.6"),
    # thousands
    ("10,080", r"10,\!080"),
    (r"11,\! 111", "11111"),
    (r"23{,}000", r"\$23\,000"),
    # percent: either reading
    (r"10\%", "10"),
    (r"10\%", "0.1"),
    ("0.1", r"10\%"),
    ("10", "10%"),
    ("10 percent", r"10\%"),
    (r"0.56 = 56\%", "0.56"),
    # dress
    ("x = 5", "5"),
    ("5", "x=5"),
    (r"x \in [-2, 7]", "[-2,7]"),
    (r"\$18.90", "18.9"),
    ("5 cm", r"5\text{ cm}"),
    (r"15\mbox{ cm}^2", "15 square cm"),
    ("90", r"90^\circ"),
    ("90 degrees", r"90^{\circ}"),
    (r"\text{Evelyn}", "evelyn"),
    (r"\text{(C)}", "C"),
    (r"(\text{H})", r"\text{H}"),
    (r"\frac{2}{3} \approx 0.67", r"\frac23"),
    (r"x \approx 8.24", "8.24"),
    (r"\approx 8.24 \text{ mph}", "8.24"),
    # roots, π, complex numbers
    (r"\frac{1}{\sqrt3}", r"\frac{\sqrt{3}}{3}"),
    (r"\sqrt{180}", r"6\sqrt5"),
    (r"\sqrt{\frac{3}{8}}", r"\frac{\sqrt{6}}{4}"),
    (r"\frac{\sqrt{6}}{\sqrt2}", r"\sqrt3"),
    (r"\frac{1+\sqrt{5}}{2}", r"(\sqrt5 + 1)/2"),
    (r"5(\sqrt{3}-1)", r"5\sqrt3-5"),
    (r"\frac94\pi", r"\frac{9 \pi}{4}"),
    (r"\frac{\pi^2}{8}", r"\pi^{2}/8"),
    ("3π", r"3\pi"),
    ("6 - 5i", "-5i+6"),
    (r"-\frac34i", r"\frac{-3i}{4}"),
    (r"\frac{3}{2i}", r"-\frac{3}{2}i"),
    # structures
    (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\pi/2)"),
    ("1,-2", "-2, 1"),
    (r"2, 3, \text{ and } 4", "4,3,2"),
    (r"x=2 \text{ or } x=3", "2,3"),
    (r"\{1\pm\sqrt{5},-2\}", r"-2, 1+\sqrt5, 1-\sqrt5"),
    (r"1 \pm \sqrt{19}", r"\{1-\sqrt{19}, 1+\sqrt{19}\}"),
    (r"(-\infty, 0.5] \cup (4,\infty)", r"(4,+\infty) \cup \left(-\infty,\frac12\right]"),
    (r"(-4, 27);(2, 15)", "(2,15),(-4,27)"),
    (r"\begin{pmatrix} 1/5 \\ -2 \end{pmatrix}", r"\begin{bmatrix}\frac15\\-2.0\end{bmatrix}"),
    # strings
    ("52_{8}", "52_8"),
    ("x^{2} + 7x + 10", "x^2+10+7x"),
    (r"2 \cdot x", "2x"),
    (r"\sin x", r"\sin{x}"),
    (r"-80 \leq g(x) \leq 82", r"-80\le g(x)\le 82"),
    ("2^{10}", "2^{10}"),
]


@pytest.mark.parametrize(("answer", "truth"), EQUAL)
def test_t24_equal(answer: str, truth: str) -> None:
    assert same_answer(answer, truth) and same_answer(truth, answer)


DIFFERENT = [
    ("17", "-17"),
    ("1 1/2", "11/2"),
    ("0.33", r"\frac13"),
    ("3.14", r"\pi"),
    ("0.3333333333333333", "1/3"),
    ("9007199254740993", "9007199254740992"),  # equal as floats
    (r"10\%", "1"),
    (r"10\%", r"0.1\%"),
    ("(1,2)", "(2,1)"),
    ("(1,2)", "[1,2]"),
    ("(1,2)", "1,2"),
    ("(100,200)", "100200"),
    ("1,2", "1,2,2"),
    (r"(0,1) \cup (1,2)", "(0,2)"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 1 & 2 \end{pmatrix}"),
    ("x = 1", "y = 1"),
    ("x=1, y=2", "x=2, y=1"),
    ("52_8", "52"),
    ("52_8", "52_9"),
    ("5:6", "5/6"),
    ("b", "B"),
    (r"\text{CBAD}", "ABCD"),
    ("B, A", "A, B"),  # words may answer "in which order"
    ("5 \\text{ million}", "5"),
    (r"\sqrt{2}", "2"),
    ("3i", "3"),
    (r"\pi", r"\pi^2"),
    (r"\infty", r"-\infty"),
    # computing is not answering: the question's own expression earns nothing
    ("3+14", "17"),
    ("3+14=17", "17"),
    (r"3 \cdot 4", "12"),
    (r"3 \cdot 4", "34"),
    (r"2 \cdot \frac12", "1"),
    (r"\sqrt{144}", "12"),
    ("2^{10}", "1024"),
    (r"\frac{2/5}{3/7}", r"\frac{14}{15}"),
    ("(x+1)(x+2)", "x^2+3x+2"),
    # infinities that are words
    ("1e400", "inf"),
    ("1e400", r"\infty"),
    ("1e3", "1000"),
    ("nan", "NaN1"),
    # nothing is equal to nothing
    ("", ""),
    (r"\$", ""),
    (r"\text{}", r"\text{}"),
]


@pytest.mark.parametrize(("answer", "truth"), DIFFERENT)
def test_t24_different(answer: str, truth: str) -> None:
    assert not same_answer(answer, truth) and not same_answer(truth, answer)


SEVENTEEN = Problem("p", "3+14", ("17",))
REASON_ROWS = [
    (r"a</think>\boxed{17}", "correct", "17"),
    (r"a</think>b</think>\boxed{17}", "correct", "17"),
    (r"\boxed{17}</think>b</think>none", "no_answer", None),
    (r"a</think>\boxed{17}</think>none", "no_answer", None),
    (r"\boxed{17}</think>\boxed{18}", "wrong", "18"),
    (r"</think>\boxed{17} or \boxed{18}", "wrong", "18"),
    (r"\boxed{17}", "no_think", None),
    (r"</think>17", "no_answer", None),
    (r"</think>\boxed{17", "no_answer", None),
    (r"</think>\boxed{}", "wrong", ""),
    ("", "no_think", None),
]


@pytest.mark.parametrize(("text", "reason", "extracted"), REASON_ROWS)
def test_t24_reason(text: str, reason: str, extracted: str | None) -> None:
    score = grade(text, SEVENTEEN)
    assert (score.reason, score.extracted) == (reason, extracted)
    assert score.value == (1.0 if reason == "correct" else 0.0)
    assert score.reason in REASONS


def test_without_think_tags() -> None:
    assert grade(r"\boxed{17}", SEVENTEEN, require_think=False).reason == "correct"
    assert grade(r"\boxed{3}</think>\boxed{17}", SEVENTEEN, require_think=False).value == 1.0


def test_length_cap_is_exact_and_comes_first() -> None:
    digits = "1" * MAX_ANSWER_CHARS
    at_cap = grade(rf"</think>\boxed{{{digits}}}", Problem("p", "q", (digits,)))
    assert at_cap.reason == "correct"
    above = grade(rf"</think>\boxed{{{digits}1}}", Problem("p", "q", (digits + "1",)))
    assert (above.reason, above.value) == ("too_long", 0.0)


def test_t24_any_alternative_is_correct_and_empty_ones_are_not() -> None:
    problem = Problem("p", "q", ("", "four", "4"))
    assert grade(r"</think>\boxed{4.0}", problem).reason == "correct"
    assert grade(r"</think>\boxed{Four}", problem).reason == "correct"
    assert grade(r"</think>\boxed{}", problem).reason == "wrong"


LETTERS = [
    ("A", "A"),
    ("(A)", "A"),
    ("a", "A"),
    (r"\text{(C)}", "C"),
    (r"\textbf{(B) } 17", "B"),
    ("A.", "A"),
    ("D) 5", "D"),
    ("$E$", "E"),
    ("AB", None),
    ("A, B", None),
    ("Apple", None),
    ("17", None),
    ("", None),
]


@pytest.mark.parametrize(("text", "letter"), LETTERS)
def test_choice_letter(text: str, letter: str | None) -> None:
    assert read_choice(text) == letter


def test_choice_kind() -> None:
    problem = Problem("p", "q", ("B",), "choice")
    assert grade(r"</think>\boxed{\text{(b)}}", problem).reason == "correct"
    assert grade(r"</think>\boxed{C}", problem).reason == "wrong"
    assert grade(r"</think>\boxed{}", Problem("p", "q", ("",), "choice")).reason == "wrong"


def test_imports_neither_torch_nor_kernels() -> None:
    code = (
        "import sys, trainer.grading, trainer.data.problems as _;"
        "print({'torch', 'kernels', 'numpy', 'transformers'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
