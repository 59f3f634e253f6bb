"""The soak test itself: a short one passes, and a leak would be seen."""

from __future__ import annotations

import subprocess
import sys

import pytest
from matplotlib.image import imread

from tests.helpers import ROOT

LEAKING = """
import pathlib, random, sys, types
from bench import soak
leak, folder = int(sys.argv[1]), pathlib.Path(sys.argv[2])
seen = soak.Soak(random.Random(0))
seen.resident = [100.0 + step for step in range(100)]
seen.held = [tuple(step * (place == leak) for place in range(4)) for step in range(100)]
(folder / soak.METRICS).touch()
trainer = types.SimpleNamespace(optimizer=types.SimpleNamespace(skipped=0))
run = types.SimpleNamespace(folder=folder, checkpoints=folder / "none", trainer=trainer)
print([what for what, _, ok in soak.checks(seen, run, 100) if not ok])
"""


def python(*arguments: str) -> str:
    """What a python process says; it must end well."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_short_one(tiny_base, tmp_path):
    """With all faults often; resident memory of so few steps says nothing."""
    settings = [f"model.path={tiny_base}", "checkpoint.every=2", "log.tensorboard=false"]
    options = ["--steps", "20", "--often", "20", "--growth", "1", "--out", str(tmp_path)]
    text = python("-m", "bench.soak", *options, *settings)
    for fault in ("NaN gradient", "out of memory", "disk full", "preempted samples"):
        assert f"| {fault} | " in text
    assert "| 20 rows |" in text and "| NO |" not in text
    assert (tmp_path / "soak.md").read_text() in text
    assert imread(tmp_path / "soak.png").shape[1] > 600


@pytest.mark.parametrize(("leak", "name"), [(0, "threads"), (2, "open files"), (3, "pages held")])
def test_a_leak_would_be_seen(leak, name, tmp_path):
    said = python("-c", LEAKING, str(leak), str(tmp_path))
    assert "'resident memory grows" in said and "'metrics.jsonl has exactly" in said
    assert f"'no more {name} at the end'" in said and said.count("no more") == 1
