"""Data sets by name: rows to problems, choices, tolerance; and what is said when one is missing."""

import json
import random
from pathlib import Path

import pytest

from trainer.embedded import task
from trainer.embedded.outside import OUTSIDE, make_outside
from trainer.embedded.task import split_of
from trainer.evaluate.choices import write_choices
from trainer.evaluate.sets import NAMES, load_set
from trainer.grading import grade
from trainer.grading.tolerance import within

MATH = {"problem": "1+1?", "answer": "2"}
ROWS = {
    "aime2024": MATH,
    "aime2025": MATH,
    "amc": {"problem": "1+1?", "answer": 2.0},
    "math500": MATH,
    "minerva": {"question": "1+1?", "answer": "2"},
    "olympiad": {"question": "1+1?", "context": None, "final_answer": ["$2$"], "unit": None,
                 "error": None},
    "gpqa": {"Question": "1+1?", "Correct Answer": "2\n", "Incorrect Answer 1": "3",
             "Incorrect Answer 2": "4", "Incorrect Answer 3": "5"},
    "lsat": {"query": "Q: P. 1+1? Answer Choices: (A)3 (B)2", "choices": ["(A)3", "(B)2"],
             "gold": [1]},
    "mmlu": {"question": "1+1?", "choices": ["3", "2", "4", "5"], "answer": 1, "subject": "x"},
}  # fmt: skip


def load(tmp_path: Path, name: str, *rows: dict, limit: int = 0):
    (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return load_set(name, str(tmp_path), limit)[1]


@pytest.mark.parametrize("name", ROWS)
def test_each_set_reads_its_rows_and_grades_the_truth(name, tmp_path):
    problems = load(tmp_path, name, ROWS[name], ROWS[name])
    assert len({problem.id for problem in problems}) == 2
    for problem in problems:
        assert "1+1?" in problem.question
        right = f"</think>\\boxed{{{problem.answers[0]}}}"
        assert grade(right, problem).value == 1.0
        if problem.kind == "choice":
            assert f"({problem.answers[0]}) 2\n" in problem.question
        else:
            assert problem.answers == ("2",)


def test_every_named_set_is_tried_here():
    assert set(NAMES) == {"embedded", "embedded_selection", *OUTSIDE, *ROWS}


@pytest.mark.parametrize("name", ["gpqa", "lsat", "mmlu", "olympiad"])
def test_a_row_of_another_set_is_named_with_its_line(name, tmp_path):
    with pytest.raises(ValueError, match=rf"{name}\.jsonl:2: not a row of {name}"):
        load(tmp_path, name, ROWS[name], {"bogus": 1})


def test_choices_are_shuffled_by_the_seed_alone():
    def ask(seed):
        return write_choices("q", "Which?", ["right", "b", "c", "d"], 0, random.Random(seed))

    assert ask("q-1") == ask("q-1")
    letters = [ask(f"q-{i}").answers[0] for i in range(400)]
    assert all(70 < letters.count(letter) < 130 for letter in "ABCD")
    problem = ask("q-1")
    (line,) = [line for line in problem.question.splitlines() if line.endswith(") right")]
    assert line == f"({problem.answers[0]}) right"
    with pytest.raises(ValueError, match="answer 4 of 4 choices"):
        write_choices("q", "Which?", list("abcd"), 4, random.Random(0))


def test_each_problem_of_a_set_has_its_own_shuffle(tmp_path):
    problems = load(tmp_path, "gpqa", *[ROWS["gpqa"]] * 40)
    assert {problem.answers[0] for problem in problems} == set("ABCD")
    assert load(tmp_path, "gpqa", *[ROWS["gpqa"]] * 40, limit=9) == problems[:9]


def test_mmlu_is_a_seeded_sample_of_a_thousand(tmp_path):
    rows = [{**ROWS["mmlu"], "question": f"{i}?"} for i in range(1_100)]
    first = load(tmp_path, "mmlu", *rows)
    assert len(first) == len(set(first)) == 1000
    assert load(tmp_path, "mmlu", *rows) == first
    assert load(tmp_path, "mmlu", *rows, limit=7) == first[:7]
    assert [p.id for p in first] != sorted((p.id for p in first), key=lambda i: int(i[5:]))


def test_olympiad_lists_units_and_tolerance(tmp_path):
    row = {**ROWS["olympiad"], "final_answer": ["3,1"], "unit": "cm", "context": "A box.",
           "error": "1e-1"}  # fmt: skip
    (problem,) = load(tmp_path, "olympiad", row)
    assert problem.question.startswith("A box.\n\n1+1?") and "cm" in problem.question
    assert problem.tolerance == 0.1
    assert grade("</think>\\boxed{1, 3 \\text{ cm}}", problem).value == 1.0
    (several,) = load(tmp_path, "olympiad", {**row, "final_answer": ["$3$", "$1$"]})
    assert grade("</think>\\boxed{1,3}", several).value == 1.0
    assert grade("</think>\\boxed{3}", several).value == 0.0  # all of them are asked for


@pytest.mark.parametrize(
    ("answer", "truth", "near"),
    [
        ("3.1", "3.14", True),
        ("3.0", "3.14", False),
        (r"\pi", "3.1", True),
        (r"\sqrt{2}", "1.41", True),
        ("1.05, 2.95", "3, 1", True),
        ("1, 3, 5", "1, 3", False),
        ("1", "1, 3", False),
        ("45\\%", "0.5", True),
        ("x", "3", False),
        ("3i", "3", False),
        ("(1, 3)", "1, 3", False),
        ("", "0", False),
        ("1" + "0" * 190 + "." + "0" * 9, "1", False),
    ],
)
def test_within_a_tenth(answer, truth, near):
    assert within(answer, truth, 0.1) is near


def test_a_tolerance_is_kept_to_its_edge():
    assert within("1.1", "1", 0.1) and not within("1.11", "1", 0.1)


def test_a_missing_set_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match=r"neither one of embedded, .*nor hub:owner/name"):
        load_set("maths", None, 0)
    with pytest.raises(ValueError) as error:
        load_set("math500", str(tmp_path), 0)
    assert "math500.jsonl" in str(error.value) and "data_dir" in str(error.value)


def test_files_and_the_first_problems(tmp_path):
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join(json.dumps({"problem": f"{i}?", "answer": i}) for i in range(5)))
    name, problems = load_set(str(file), None, 3)
    assert name == "mine" and [p.answers for p in problems] == [("0",), ("1",), ("2",)]


def test_embedded_problems_are_held_out_and_not_those_of_a_run():
    _, problems = load_set("embedded", None, 200)
    numbers = [list(map(int, p.question[:-2].split("+"))) for p in problems]
    assert {split_of(n) for n in numbers} == {"heldout"}
    assert len(load_set("embedded", None, 0)[1]) == 1000


@pytest.mark.parametrize("kind", OUTSIDE)
def test_problems_outside_are_outside_and_right(kind):
    (low, high), (least, most) = OUTSIDE[kind]
    _, problems = load_set(kind, None, 60)
    counts = set()
    for problem in problems:
        numbers = list(map(int, problem.question[:-2].split("+")))
        counts.add(len(numbers))
        assert low <= len(numbers) <= high and least <= min(numbers) and max(numbers) <= most
        assert problem.answers == (str(sum(numbers)),)
    assert counts == set(range(low, high + 1))
    assert low > task.TERMS[1] or most > task.NUMBERS[1]  # else it is what was trained on
    assert make_outside(0, 3, kind) == make_outside(0, 3, kind) != make_outside(1, 3, kind)
