"""The bench of the step end to end on a tiny model, TRL left out: all its parts are there, and sane."""

from __future__ import annotations

import csv
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from bench import step_report
from bench.step import Process, Subject, prompt_text, small_model
from trainer.preflight import load_tokenizer

ROOT = Path(__file__).resolve().parents[1]


def test_every_part_of_the_bench_is_there(tmp_path):
    (tmp_path / "benchmarks.md").write_text(f"kept\n{step_report.BEGIN}\nold\n{step_report.END}\n")
    command = [sys.executable, "-m", "bench.step", "--quick", "--trl", "none", "--rounds", "1"]
    subprocess.run([*command, "--out", tmp_path], cwd=ROOT, check=True, capture_output=True)
    with (tmp_path / "bench" / "step.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert all(float(row["seconds"]) > 0 for row in rows)
    of = {part: [r for r in rows if r["part"] == part] for part in {r["part"] for r in rows}}
    assert of.keys() == {"step", "pass", "lengths", "profile"}
    assert {row["case"] for row in of["step"]} == {"equal", "ragged"}
    assert all(float(row["peak_mib"]) > 5 for row in of["step"])
    shares = [float(row["share_of_gemm"]) for row in of["pass"] if row["share_of_gemm"]]
    assert shares and all(0 < share < 1 for share in shares)
    assert len(of["lengths"]) == 11
    assert 0.5 < sum(float(row["share"]) for row in of["profile"]) <= 1
    text = (tmp_path / "benchmarks.md").read_text()
    assert text.startswith("kept\n") and "old" not in text and "**profile, 1.3 M**" in text
    assert (tmp_path / "bench" / "step_lengths.png").stat().st_size > 1000


def test_a_document_without_markers_is_refused(tmp_path):
    (tmp_path / "benchmarks.md").write_text("nothing to replace")
    row = dict.fromkeys(step_report.COLUMNS, "x") | {"part": "step", "seconds": 1.0}
    with pytest.raises(ValueError, match="lacks a marker"):
        step_report.write(tmp_path, [row])


def test_prompts_have_the_tokens_asked_for(tmp_path):
    tokenizer, _ = load_tokenizer(small_model(tmp_path))
    assert len(tokenizer.encode(prompt_text(tmp_path, 24))) == 24


def test_a_side_that_fails_is_not_waited_for():
    with pytest.raises(RuntimeError, match="ended with 3"):
        Process([sys.executable, "-c", "raise SystemExit(3)"], {})


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="TRL has its own environment")
def test_trl_takes_a_step(tmp_path):
    subject = Subject("tiny", small_model(tmp_path), 4, 2, 5, 8, (4,))
    job = subject.job("ragged", dtype="float32", micro_batch=4)
    process = Process([sys.executable, str(ROOT / "bench" / "step_trl.py")], job)
    assert process.step() > 0 and process.end() > 5
