"""The sample viewer: what it picks, how it says no, and that model text stays plain characters."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from trainer import samples
from trainer.record import SAMPLES

ROW = {
    "step": 3, "group": 7, "problem": "train-17", "question": "3+14=?", "answers": ["17"],
    "mode": "exact", "budget": 32, "sample": 0, "text": "3+14=17\n</think>\\boxed{17}<|end|>",
    "tokens": 40, "truncated": False, "reason": "correct", "extracted": "17",
    "correctness": 1.0, "length": -0.1, "reward": 0.9, "advantage": 0.25,
}  # fmt: skip


def write(run: Path, rows: list[dict[str, Any]], tail: str = "") -> Path:
    run.mkdir(exist_ok=True)
    (run / SAMPLES).write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)
    return run


def shown(row: dict[str, Any], terminal: bool = False) -> str:
    stream = io.StringIO()
    colours = "standard" if terminal else None
    console = Console(file=stream, width=100, force_terminal=terminal, color_system=colours)
    console.print(samples.render(row))
    return stream.getvalue()


def run_main(capsys, *arguments: object) -> tuple[int, str, str]:
    code = samples.main([str(argument) for argument in arguments])
    output = capsys.readouterr()
    return code, output.out, output.err


def test_a_panel_has_everything(tmp_path):
    text = shown(ROW | {"advantage": None, "truncated": True})
    for part in (
        "step 3 · group 7 · sample 0 · train-17", "3+14=?", "40 used, 32 asked (exact)  +25.0%",
        "truncated", "✔ correct  answered “17”, expected “17”",
        "correctness 1  length -0.1  reward 0.9  advantage not finite", "\\boxed{17}<|end|>",
    ):  # fmt: skip
        assert part in text


def test_thinking_is_dim_and_the_answer_highlighted():
    text = shown(ROW, terminal=True)
    assert "\x1b[2m3+14=17\x1b[0m" in text
    assert "\x1b[2m</think>\x1b[0m\\boxed{\x1b[1;7;32m17\x1b[0m}<|end|>" in text
    wrong = shown(ROW | {"reason": "wrong"}, terminal=True)
    assert "\\boxed{\x1b[1;7;31m17\x1b[0m}" in wrong
    cut = shown(ROW | {"text": "3+14=", "reason": "no_think", "extracted": None}, terminal=True)
    assert "\x1b[2m3+14=\x1b[0m" in cut
    untagged = shown(ROW | {"text": "so \\boxed{17}"}, terminal=True)
    assert "so \\boxed{\x1b[1;7;32m17" in untagged


def test_markup_and_control_characters_are_not_interpreted():
    evil = "[bold red]x[/] [link=a]b[/link] [/no] :smile: \x1b[31m\x1b]0;t\x07\r\x9b2J\u202e\ud800"
    plain = "[bold red]x[/] [link=a]b[/link] [/no] :smile: [31m]0;t2J"
    row = ROW | {
        "text": evil,
        "question": evil,
        "answers": [evil],
        "extracted": evil,
        "mode": "max",
    }
    text = shown(row | {"problem": evil})
    assert text.replace("│\n│", "").count(plain) >= 3
    assert not set("\x1b\x07\r\x9b\u202e\ud800") & set(text)
    assert text.encode()  # no lone surrogate is left


@given(st.text(st.characters(), max_size=60))
def test_any_text_is_shown_without_control_characters(text):
    terminal = shown(ROW | {"text": text, "extracted": text[:5], "reason": text})
    assert all(c == "\n" or ord(c) >= 32 for c in terminal) and "\x9b" not in terminal
    terminal.encode()


def test_the_last_step_is_shown_by_default(tmp_path, capsys):
    rows = [ROW | {"step": step, "sample": k} for step in (1, 2) for k in range(2)]
    run = write(tmp_path / "run", rows, tail='{"step": 3, "gro')
    code, out, _ = run_main(capsys, run)
    assert code == 0 and out.count("step 2 ·") == 2 and "step 1 ·" not in out
    code, out, _ = run_main(capsys, run, "--step", 1)
    assert code == 0 and out.count("step 1 ·") == 2 and "step 2 ·" not in out


def test_filters_sort_and_limit(tmp_path, capsys):
    rows = [
        ROW | {"sample": k, "tokens": tokens, "reason": "wrong", "mode": mode}
        for k, (tokens, mode) in enumerate([(30, "exact"), (8, "exact"), (8, "max"), (50, "max")])
    ]
    rows += [ROW | {"sample": 8, "group": 8}, ROW | {"sample": 9, "budget": 64}]
    run = write(tmp_path / "run", rows)

    def order(*arguments: object) -> list[int]:
        code, out, _ = run_main(capsys, run, *arguments)
        assert code == 0
        return [int(part[0]) for part in out.split("· sample ")[1:]]

    assert order("--limit", 9) == [0, 1, 2, 3, 8, 9]
    assert order("--reason", "wrong", "--sort", "deviation") == [1, 3, 0, 2]
    assert order("--group", 8) == [8] and order("--budget", 64) == [9]
    assert order("--limit", 2) == [0, 1]
    assert "2 of 6 samples shown" in run_main(capsys, run, "--limit", 2)[1]


@pytest.mark.parametrize(
    ("rows", "arguments", "message"),
    [
        (None, (), "no such run"),
        ([], (), "no samples yet"),
        ([ROW], ("--step", 9), "no samples of step 9; there are steps 3 to 3"),
        ([ROW], ("--budget", 8), "no sample with budget 8; there are: budget 32 (1)"),
        ([ROW], ("--reason", "wrong", "--group", 7), "group 7 (1); reason correct (1)"),
        ([{"no": "step"}, ROW], (), "samples.jsonl:1: not a row"),
    ],
)
def test_what_cannot_be_shown_is_said(tmp_path, capsys, rows, arguments, message):
    run = tmp_path / "run"
    if rows is not None:
        write(run, rows)
    code, out, err = run_main(capsys, run, *arguments)
    assert code == 2 and out == "" and message in err and err.count("\n") == 1


def test_a_folder_that_is_no_run(tmp_path, capsys):
    code, _, err = run_main(capsys, tmp_path)
    assert code == 2 and "no samples.jsonl" in err


@pytest.mark.parametrize("arguments", [("--reason", "bogus"), ("--limit", "0"), ("--sort", "x")])
def test_bad_arguments_exit_2(tmp_path, capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        samples.main([str(write(tmp_path / "run", [ROW])), *arguments])
    assert stop.value.code == 2 and arguments[0] in capsys.readouterr().err
