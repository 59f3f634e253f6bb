"""One op's bench end to end at tiny shapes: its figures, their place, and what is refused."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = [
    *("op", "shape", "dtype", "contender", "pass", "ms_median", "ms_min", "peak_mib"),
    *("floor_ms", "ratio_to_floor", "machine", "torch", "threads", "omp_policy", "commit"),
]
DOCUMENT = """# Kept
<!-- bench:begin, written by python -m bench -->
stale
<!-- bench:end -->
kept
"""


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | {"MPLBACKEND": "Agg"}, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("bench")
    (out / "benchmarks.md").write_text(DOCUMENT)
    (out / "bench").mkdir()
    other = {name: "1" for name in COLUMNS} | {"op": "other", "contender": "stays", "pass": "fwd"}
    with (out / "bench" / "results.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, other)
        writer.writeheader()
        writer.writerow(other)
    # Two contenders: each costs a process, and torch.compile a compiler.
    options = ("--quick", "--threads", "1", "--only", "ours,Liger", "--out", str(out))
    ran = bench("bench.linear_logprob", *options)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return out


def test_every_contender_has_its_passes(results):
    with (results / "bench" / "results.csv").open(newline="") as stream:
        every = list(csv.DictReader(stream))
    assert list(every[0]) == COLUMNS
    rows = [row for row in every if row["op"] == "linear_logprob"]
    assert [row["contender"] for row in every if row["op"] == "other"] == ["stays"]
    assert {row["dtype"] for row in rows} == {"float32", "bfloat16"}
    ours = [r for r in rows if r["contender"] == "ours" and r["dtype"] == "float32"]
    assert [r["pass"] for r in ours] == ["fwd", "bwd", "fwd+bwd"]
    for row in ours:
        assert 0 < float(row["ms_min"]) <= float(row["ms_median"])
        ratio = float(row["ms_median"]) / float(row["floor_ms"])
        assert float(row["ratio_to_floor"]) == pytest.approx(ratio, rel=0.01)
        assert row["threads"] == "1" and row["omp_policy"] and row["machine"] and row["commit"]
    assert float(ours[-1]["peak_mib"]) >= 0
    absent = [row for row in rows if row["pass"].startswith("absent")]
    assert {row["contender"] for row in absent} >= {"Liger"}  # it needs CUDA


def test_the_document_is_written_between_its_markers_only(results):
    text = (results / "benchmarks.md").read_text()
    assert text.startswith("# Kept\n") and text.endswith("<!-- bench:end -->\nkept\n")
    assert "stale" not in text and "| ours |" in text and "needs CUDA" in text
    assert (results / "bench" / "linear_logprob.png").stat().st_size > 1000


def test_no_gpu_is_said_in_one_line():
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    ran = bench("bench.gpu")
    assert (ran.returncode, ran.stdout) == (0, "bench.gpu: no CUDA device, nothing measured\n")
