"""The rollout bench end to end on a tiny model: all its figures, and that they are sane."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_every_comparison_of_the_bench_is_there(tiny_base, tmp_path):
    command = [sys.executable, "-m", "bench.rollout", str(tiny_base), "--quick", "--out", tmp_path]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    with (tmp_path / "bench" / "rollout.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["model"] for row in rows} == {tiny_base.name}
    figures = {row["figure"]: float(row["value"]) for row in rows}
    assert len(figures) == 16
    others = [rate for name, rate in figures.items() if "tokens/s, generate" in name]
    gain = figures["tokens/s, times the best generate"]
    assert gain == pytest.approx(figures["tokens/s, ours"] / max(others), rel=1e-2)
    assert figures["small pool: requests that differ from a large pool's"] == 0
    assert figures["decode step, ms"] > figures["decode step, floor ms"] > 0
