"""bench.grading: its pairs are what they are called, and its document says what it measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from bench import grading
from bench.grading_inputs import NASTY, Pair, boxed_questions, pairs, read_truths
from tests.fault import stub_worker
from trainer.grading.parse import same_answer
from trainer.grading.pool import WorkerPool

ROWS = [("Expand $(x+1)(x+2)$.", "x^2+3x+2"), ("What is $3+14$?", "17"), ("Half?", r"\frac12")]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [json.dumps({"problem": q, "answer": a}) for q, a in [*ROWS, ROWS[1]]]
    (tmp_path / "set.jsonl").write_text("\n".join(rows))
    return tmp_path


def test_pairs() -> None:
    found = pairs([truth for _, truth in [*ROWS, ROWS[1]]])
    kinds = [pair.kind for pair in found]
    assert (kinds.count("itself"), kinds.count("rewrite"), kinds.count("neighbour")) == (3, 3, 3)
    for pair in found:
        assert (pair.answer == pair.truth) == (pair.kind == "itself")
        assert same_answer(pair.answer, pair.truth) == (pair.kind != "neighbour")


def test_expressions_of_questions() -> None:
    found = boxed_questions(ROWS)
    assert found == [
        (ROWS[0][0], Pair("question", "(x+1)(x+2)", "x^2+3x+2")),
        (ROWS[1][0], Pair("question", "3+14", "17")),
    ]
    assert boxed_questions([("Is $1+1$ it?", "1+1")]) == []


def test_truths_come_from_all_files(data: Path, tmp_path: Path) -> None:
    assert read_truths(data) == [*ROWS, ROWS[1]]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty has no \*\.jsonl"):
        read_truths(tmp_path / "empty")


def test_the_document_without_a_symbolic_tier(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "tables.md"
    grading.main(["--data", str(data), "--out", str(out)])
    text = out.read_text()
    assert "4 rows with an answer" in text and "symbolic tier: not installed" in text
    assert text.count("|  |  |") == len(NASTY)
    assert "mean over 9 pairs" in text and "| exact tier | 0 | 3 |" in text


def test_disagreements_are_listed_and_judged() -> None:
    pool = WorkerPool(
        stub_worker.__name__,
        workers=1,
        timeout_seconds=5.0,
        memory_mib=512,
        python=sys.executable,
    )
    found = [
        Pair("itself", "right", "right"),
        Pair("neighbour", "a|b", "right"),
        Pair("rewrite", "wrong", "wrong."),
        Pair("neighbour", "exit", "right"),
    ]
    text = grading.agreement(found, pool)
    pool.close()
    assert "| itself | same | same | 1 |" in text
    assert "| neighbour | different | crashed | 1 |" in text
    assert "| rewrite | `wrong` | `wrong.` | same | different | same, by construction |" in text
    assert "| neighbour | `exit` | `right` | different | crashed | not judged |" in text
    assert r"a\|b" not in text  # no disagreement there
    assert grading.code("a|\n\\") == r"`a\|\n\`"


def test_every_judgement_is_one_of_two() -> None:
    for judged in grading.JUDGED.values():
        assert judged.partition(":")[0] in ("same", "different")
