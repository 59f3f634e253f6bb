"""Planned against measured: FLOPs within 2% of torch's counter, memory within 15% of the process.

SmolLM2-135M is taken as well where the environment names its folder in LCPO_SMOLLM2
(`python -m bench.smollm2 FOLDER` makes it).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDER = os.environ.get("LCPO_SMOLLM2")


def measured(out: Path, *arguments: str) -> list[dict]:
    command = [sys.executable, "-m", "bench.plan", "--out", str(out), *arguments]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return json.loads((out / "plan.json").read_text())


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measured by Linux only")
@pytest.mark.parametrize(
    "model",
    [
        "embedded",
        pytest.param(
            "SmolLM2", marks=pytest.mark.skipif(not FOLDER, reason="LCPO_SMOLLM2 names no folder")
        ),
    ],
)
def test_what_is_planned_is_measured(tmp_path, model):
    rows = measured(tmp_path, *([FOLDER] if model == "SmolLM2" else []))
    assert len({row["model"] for row in rows}) == 1 + (model == "SmolLM2")
    assert {row["what"] for row in rows} == {"FLOPs, logprob", "FLOPs, update", "bytes, update"}
    for row in rows:
        within = 0.15 if row["what"].startswith("bytes") else 0.02
        assert row["ratio"] == pytest.approx(1, abs=within), row
