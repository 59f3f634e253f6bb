"""The exact parser on every answer of ../shared/data: rewrites stay equal, the rest stay apart."""

import json
import re
from collections import defaultdict
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import pytest

from trainer.grading.parse import parse, same_answer

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
FILES = ("amc.jsonl", "math500.jsonl", "math_train.jsonl")

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"no data sets at {DATA}")


def rows() -> list[tuple[str, str]]:
    """(question, truth) of every row that has an answer, in file order."""
    found = []
    for name in FILES:
        for line in (DATA / name).read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            answer = row["answer"]
            if isinstance(answer, float):
                answer = str(int(answer))
            if answer:
                found.append((row["problem"], answer))
    return found


@pytest.fixture(scope="module")
def truths() -> list[str]:
    return sorted({truth for _, truth in rows()})


def add_left_right(text: str) -> str:
    return re.sub(r"(?<!left)\(", r"\\left(", re.sub(r"(?<!right)\)", r"\\right)", text))


REWRITES = {
    "itself": lambda text: text,
    "dfrac": lambda text: re.sub(r"\\[dt]?frac", r"\\dfrac", text),
    "frac": lambda text: re.sub(r"\\[dt]frac", r"\\frac", text),
    "braced frac": lambda text: re.sub(r"\\frac(\d)(\d)", r"\\frac{\1}{\2}", text),
    "spaces around": lambda text: f"  {text}\n",
    "spaces inside": lambda text: (
        re.sub(r"(?<![\\,])([+=()\[\]{}-])(?![,}]|\\end)", r" \1 ", text)
        if r"\text" not in text and "{," not in text and r"\begin" not in text
        else text
    ),
    "no spaces": lambda text: re.sub(r"(?<=[\d,+=()-]) (?=[+=()\\-])", "", text),
    "left right": add_left_right,
    "no left right": lambda text: re.sub(r"\\(?:left|right)", "", text),
    "dollars": lambda text: f"${text}$",
    "thin space": lambda text: text.replace("=", r"\,=\,"),
    "full stop": lambda text: f"{text}.",
    "trailing .0": lambda text: f"{text}.0" if re.fullmatch(r"\s*-?\d+", text) else text,
    "unit": lambda text: rf"{text}\text{{ cm}}" if re.fullmatch(r"-?\d+", text) else text,
}


@pytest.mark.parametrize("rewrite", REWRITES.values(), ids=REWRITES.keys())
def test_every_truth_equals_its_rewrite(truths: list[str], rewrite) -> None:
    unequal = [truth for truth in truths if not same_answer(rewrite(truth), truth)]
    assert unequal == []


PLAIN = re.compile(
    r"(?P<sign>-?)(?:(?P<whole>[\d.]+)?\\frac\{?(?P<top>\d+?)\}?\{?(?P<bottom>\d+)\}?"
    r"|(?P<n>\d+)/(?P<d>\d+)|(?P<decimal>[\d.]+))"
)

# Equal in value though the plain judge below cannot see it: each line was checked by hand.
JUDGED_EQUAL = [
    {"1,-2", "-2,1"},
    {"-2,2", "2,-2"},
    {r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}"},
    {r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}"},
    {r"-\frac{\sqrt{2}}{2}", r"-\frac{1}{\sqrt{2}}"},
    {r"\sqrt{2}+1", r"1+\sqrt{2}"},
    {r"\frac{-1+\sqrt{5}}{2}", r"\frac{\sqrt{5}-1}{2}"},
    {r"2\sqrt{5}", r"2\sqrt5"},
    {r"10\sqrt{3}", r"10\sqrt3"},
    {r"12\sqrt{3}", r"12\sqrt3"},
    {"-x+1", "1-x"},
    {"-2x+1", "1-2x"},
]


def strip(text: str) -> str:
    """The normalised string of the judge, written independently of the parser's."""
    text = re.sub(r"\\text\{(\(?[A-Z]\)?)\}", r"\1", text.strip())
    text = re.sub(r"\\(?:text|mbox|textnormal)\{[^}]*\}(?:\^2)?", "", text)
    text = re.sub(r"\\mathbf\{(\d+)\}", r"\1", text)
    text = re.sub(r"\\left|\\right|,?\\!|\\\$|\^\\circ|\^\{\\circ\}|\s", "", text)
    text = re.sub(r"^\(([A-Z])\),?$", r"\1", re.sub(r"(?<=.)\\approx.*", "", text))
    return re.sub(r"^[A-Za-z]=|\.$", "", re.sub(r"\\[dt]frac", r"\\frac", text))


def judge(text: str) -> str | Fraction:
    """A plain number's value, else the stripped string."""
    match = PLAIN.fullmatch(strip(text))
    if match is None:
        return strip(text)
    if match["decimal"]:
        value = Fraction(match["decimal"])
    else:
        value = Fraction(int(match["top"] or match["n"]), int(match["bottom"] or match["d"]))
        value += Fraction(match["whole"] or 0)
    return -value if match["sign"] else value


def test_truths_that_the_parser_calls_equal_are_equal(truths: list[str]) -> None:
    """All pairs of distinct truths, through their canonical values."""
    classes = defaultdict(list)
    for truth in truths:
        classes[parse(truth).value].append(truth)
    merged = [group for group in classes.values() if len(group) > 1]
    assert len(merged) > 100  # 5,\!040 and 5040, 0.5 and \frac12, ...
    doubtful = [
        group
        for group in merged
        if len({judge(truth) for truth in group}) > 1
        and {strip(truth) for truth in group} not in JUDGED_EQUAL
    ]
    assert doubtful == []


def test_every_truth_differs_from_its_neighbours() -> None:
    wrong = []
    answers = [truth for _, truth in rows()]
    for left, right in pairwise(answers):
        if same_answer(left, right) and judge(left) != judge(right):
            percent = {r"\%"} & {left[-2:], right[-2:]}  # 10\% is 10 and 0.1
            if not percent and {strip(left), strip(right)} not in JUDGED_EQUAL:
                wrong.append((left, right))
    assert wrong == []


def test_boxing_the_question_pays_nothing() -> None:
    """A short budget invites boxing the question's own expression: it must not be evaluated.

    What is still paid holds no operator: values in another form (√180 for 6√5, 84/144 for 7/12,
    3/20 for 0.15) and givens that happen to equal the answer.
    """
    graded, paid = 0, []
    for question, truth in rows():
        for dollars, brackets in re.findall(r"\$([^$]+)\$|\\\[(.+?)\\\]", question, re.DOTALL):
            expression = (dollars or brackets)[:1_000]
            if re.search(r"[+*^!]|\d\s*-|\\cdot|\\times|\\div|\\sum|\\log", expression):
                graded += 1
                if same_answer(expression, truth) and judge(expression) != judge(truth):
                    paid.append((expression, truth))
    assert graded > 5_000
    assert paid == []
