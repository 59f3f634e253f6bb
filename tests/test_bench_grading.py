"""bench.grading: its pairs are what they are called, and its document says what it measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROWS = [("Expand $(x+1)(x+2)$.", "x^2+3x+2"), ("What is $3+14$?", "17"), ("Is it $1+1$?", "1+1")]
STUB = ("--python", sys.executable, "--worker", "tests.fault.stub_worker")


def bench(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench.grading", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [*ROWS, ("Say it.", "right"), ("Leave.", "exit"), ROWS[1]]
    lines = [json.dumps({"problem": q, "answer": a}) for q, a in rows]
    (tmp_path / "set.jsonl").write_text("\n".join(lines))
    return tmp_path


def test_the_document_without_a_symbolic_tier(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "tables.md"
    ran = bench("--data", data, "--out", out)
    assert ran.returncode == 0, ran.stderr
    text = out.read_text()
    assert "6 rows with an answer, each 1. of" in text and "symbolic tier: not installed" in text
    assert text.count(" |  |  |") > 20  # the nasty inputs
    assert "mean over 15 pairs" in text  # 5 truths, as many rewrites and neighbours
    assert "| exact tier | 0 | 3 |" in text  # $1+1$ is its own truth


def test_disagreements_are_listed_and_judged(data: Path, tmp_path: Path) -> None:
    """The stub calls "right" right, and nothing else; "exit" ends it."""
    out = tmp_path / "tables.md"
    ran = bench("--data", data, "--out", out, *STUB)
    assert ran.returncode == 0, ran.stderr
    text = out.read_text()
    assert "| itself | same | same | 1 |" in text
    assert "| itself | same | different | 3 |" in text
    assert "| itself | `exit` | `exit` | same | crashed | same, by construction |" in text
    assert "| neighbour | `exit` | `17` | different | crashed | not judged |" in text
    assert "`right` | `right`" not in text.partition("Where they differ")[2]
    assert "| symbolic tier by itself | 0 | 3 |" in text
    assert "may be asked about 2 of 6 truths" in text


def test_a_folder_without_data_is_named(tmp_path: Path) -> None:
    ran = bench("--data", tmp_path, "--out", tmp_path / "tables.md")
    assert ran.returncode != 0 and "has no *.jsonl" in ran.stderr
