"""The bench of the step end to end on a tiny model, TRL left out: all is there, and sane."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMMAND = [sys.executable, "-m", "bench.step", "--quick", "--trl", "none", "--rounds", "1"]


def read(folder):
    with (folder / "bench" / "step.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_every_part_of_the_bench_is_there(tmp_path):
    begin, end = "<!-- step:begin, written by python -m bench.step -->", "<!-- step:end -->"
    (tmp_path / "benchmarks.md").write_text(f"kept\n{begin}\nold\n{end}\n")
    subprocess.run([*COMMAND, "--out", tmp_path], cwd=ROOT, check=True, capture_output=True)
    rows = read(tmp_path)
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

    again = [*COMMAND, "--parts", "pass", "--out", tmp_path]
    subprocess.run(again, cwd=ROOT, check=True, capture_output=True)
    parts = [row["part"] for row in rows]
    assert [row["part"] for row in read(tmp_path)] == parts, "each part once, in the same order"
    changed = {a["part"] for a, b in zip(rows, read(tmp_path), strict=True) if a != b}
    assert changed == {"pass"}, "the tables of parts that were not measured stay"


def test_a_document_without_markers_is_refused(tmp_path):
    (tmp_path / "benchmarks.md").write_text("nothing to replace")
    command = [*COMMAND, "--parts", "pass", "--out", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0 and "lacks a marker" in done.stderr
    assert (tmp_path / "benchmarks.md").read_text() == "nothing to replace"
