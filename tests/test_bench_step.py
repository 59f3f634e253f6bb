"""The bench of the step end to end on a tiny model, TRL left out: all is there, and sane."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

from bench import step_report

ROOT = Path(__file__).resolve().parents[1]
COMMAND = [sys.executable, "-m", "bench.step", "--quick", "--trl", "none", "--rounds", "1"]


def test_every_part_of_the_bench_is_there(tmp_path):
    begin, end = "<!-- step:begin, written by python -m bench.step -->", "<!-- step:end -->"
    (tmp_path / "benchmarks.md").write_text(f"kept\n{begin}\nold\n{end}\n")
    subprocess.run([*COMMAND, "--out", tmp_path], cwd=ROOT, check=True, capture_output=True)
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


def test_other_parts_and_models_keep_their_figures(tmp_path):
    def rows(part, model, seconds):
        about = {"machine": "a box", "threads": 2, "torch": "2", "commit": seconds, "load": "0.0"}
        row = {"part": part, "model": model, "case": "c", "contender": "ours", "seconds": seconds}
        return [row | about]

    (tmp_path / "benchmarks.md").write_text(f"{step_report.BEGIN}\n{step_report.END}\n")
    for part, model, seconds in [
        ("profile", "a", 1.0),
        ("step", "a", 2.0),
        ("step", "b", 3.0),
        ("step", "a", 4.0),
    ]:
        step_report.write(tmp_path, rows(part, model, seconds))
    found = step_report.read(tmp_path / "bench" / "step.csv")
    kept = [(row["model"], row["part"], float(row["seconds"])) for row in found]
    assert kept == [("a", "step", 4.0), ("a", "profile", 1.0), ("b", "step", 3.0)]
    text = (tmp_path / "benchmarks.md").read_text()
    assert "**step, a** · a box, 2 threads, torch 2, commit 4, load 0.0" in text
    assert "**profile, a** · a box, 2 threads, torch 2, commit 1, load 0.0" in text


def test_a_document_without_markers_is_refused(tmp_path):
    (tmp_path / "benchmarks.md").write_text("nothing to replace")
    command = [*COMMAND, "--parts", "pass", "--out", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0 and "lacks a marker" in done.stderr
    assert (tmp_path / "benchmarks.md").read_text() == "nothing to replace"
