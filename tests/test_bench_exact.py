"""The bench of exact rollouts end to end on a tiny model."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import kernels

ROOT = Path(__file__).resolve().parents[1]
SMALL = ("rollout.prompts=2", "rollout.samples=3", "rollout.max_response_tokens=12")


def test_both_sides_step_and_the_ratio_is_theirs(tiny_base):
    if kernels.active_backends()["linear"] != "cpp":
        pytest.skip("the compiled library is not built")
    command = [sys.executable, "-m", "bench.exact", "--model", str(tiny_base), "--rounds", "2"]
    done = subprocess.run(
        [*command, *SMALL, "budget.max=12", "seed=1"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    for side in ("default", "exact"):
        assert len(re.findall(rf"^round \d, {side}: [\d.]+ s", done.stdout, re.M)) == 3
    assert re.search(r"^exact: [\d.]+ s a step, gap at most 0$", done.stdout, re.M)
    cost = re.search(r"^cost of batch_invariant, .*: ([\d.]+) \(median of 2", done.stdout, re.M)
    assert cost and 0 < float(cost[1]) < 10
