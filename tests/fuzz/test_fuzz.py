"""The fuzzer finds what it should, repeats what it found, and finds nothing in what is shipped."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.fuzz.__main__ import main
from tests.fuzz.engine import make_input, run_case, run_target
from tests.fuzz.mutate import mutate_text, shrink
from tests.fuzz.targets import Target, targets

SECONDS = 10  # shared by the targets; a run of hours is `python -m tests.fuzz --seconds 36000`
TARGETS = targets()


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_nothing_is_found(target: Target) -> None:
    summary = run_target(target, SECONDS / len(TARGETS))
    report = "\n".join(
        f"case {f.number}, shrunk {f.text[:200]!r}\n{f.error}" for f in summary.found
    )
    assert not summary.found, report
    assert summary.cases >= len(target.seeds)


def crash(text: str, folder: Path) -> None:
    if "}" in text and "{" in text:
        raise KeyError(text)
    if len(text) > 5:
        raise ValueError(f"file.txt: {len(text)} characters")


def spin(text: str, folder: Path) -> None:
    while "x" in text:
        pass


def grow(text: str, folder: Path) -> None:
    assert len(bytes(len(text) << 30)) > 0


def test_a_crash_is_found_and_shrunk() -> None:
    target = Target("crash", ("a {b} c", "x" * 9), mutate_text, crash, (ValueError,), "file.txt")
    summary = run_target(target, 0)
    (found,) = summary.found
    assert found.text == "{}" and "KeyError" in found.error
    assert (summary.cases, summary.refused) == (2, 1)


def test_a_refusal_that_names_nothing_is_a_find() -> None:
    target = Target("crash", ("123456",), mutate_text, crash, (ValueError,), "other.txt")
    assert "refused by accident" in run_target(target, 0).found[0].error


def test_a_hang_and_a_memory_bomb_are_found() -> None:
    (hang,) = run_target(Target("spin", ("axb",), mutate_text, spin), 0, limit=0.05).found
    assert hang.text == "x" and "Hang" in hang.error
    (bomb,) = run_target(Target("grow", ("xxxxxx",), mutate_text, grow), 0).found
    assert "MemoryError" in bomb.error


def test_a_case_is_made_again_from_its_number() -> None:
    for target in TARGETS:
        inputs = [make_input(target, 3, number) for number in range(len(target.seeds) + 20)]
        assert inputs == [make_input(target, 3, number) for number in range(len(inputs))]
        assert len(set(inputs)) > len(target.seeds) and inputs[: len(target.seeds)] == [
            *target.seeds
        ]


def test_a_seed_is_accepted(tmp_path: Path) -> None:
    """Else what is made of them would only test the first check of a reader."""
    refused = ("sets", "manifest")  # four sets read each row, and the sha256 is of nothing
    for target in TARGETS:
        if target.name in refused:
            continue
        (tmp_path / target.name).mkdir()
        outcomes = [run_case(target, seed, tmp_path / target.name) for seed in target.seeds]
        assert "" in outcomes, (target.name, outcomes)


def test_shrinking_keeps_the_failure() -> None:
    text = "".join(random.Random(0).choices("abc", k=500)) + "17"
    assert shrink(text, lambda t: "7" in t and "a" in t) in ("a7", "7a")


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seconds", "0.2", "--only", "extract,parse"]) == 0
    assert "extract" in capsys.readouterr().out
    assert main(["--only", "extract", "--case", "0"]) == 0
    assert "read" in capsys.readouterr().out
