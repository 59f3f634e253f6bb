"""The whole command: two tiny steps, evaluated before and after, and all that a run leaves."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from tests.helpers import ROOT, command
from trainer.record import EVALUATIONS, METRICS, SAMPLES, read_rows

STEPS, SAMPLES_A_STEP = 2, 4 * 3


def python(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True, text=True, timeout=120, check=False, cwd=ROOT,
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(tiny_base, tmp_path_factory) -> tuple[Path, str]:
    """The run folder and what the command printed."""
    folder = tmp_path_factory.mktemp("end-to-end") / "run"
    changes = (f"train.steps={STEPS}", "evaluate.every=0", "log.tensorboard=true")
    done = python("-m", "trainer.run", *command(tiny_base, folder, *changes))
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    return folder, done.stdout


def test_it_says_what_it_does_and_where(finished):
    folder, output = finished
    assert "scale: embedded (as asked)" in output
    assert f"run folder: {folder}" in output
    assert "Evaluation before training" in output and "Evaluation after training" in output
    assert f"step {STEPS}/{STEPS}" in output
    assert output.splitlines()[-1].startswith("done: ")


def test_every_file_of_the_run_folder_is_there(finished):
    folder, _ = finished
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "checkpoints", "config.json", "environment.json", "evaluation.png", "evaluations.jsonl",
        "metrics.jsonl", "samples.jsonl", "tensorboard", "training.png",
    }  # fmt: skip
    config = json.loads((folder / "config.json").read_text())
    assert config["train"]["steps"] == STEPS and config["rollout"]["temperature"] == 0.6
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-00000002"]
    assert sum(path.stat().st_size for path in (folder / "tensorboard").iterdir()) > 1000


def test_rows_are_complete(finished):
    folder, _ = finished
    steps = read_rows(folder / METRICS)
    assert [row["step"] for row in steps] == [1, 2]
    for row in steps:
        assert row["metrics"]["policy/ratio_dev_first"] == 0.0
        assert row["timing"]["total"] > 0
        assert None not in row["metrics"].values()
    evaluations = read_rows(folder / EVALUATIONS)
    assert [(row["step"], row["phase"]) for row in evaluations] == [(0, "before"), (2, "after")]
    assert [len(row["used"]) for row in evaluations] == [2 * 2, 2 * 2]  # budgets x problems
    samples = read_rows(folder / SAMPLES)
    assert [row["step"] for row in samples] == [1] * SAMPLES_A_STEP + [2] * SAMPLES_A_STEP
    assert all(row["tokens"] > 0 and row["text"] for row in samples)


def test_plots_show_something(finished):
    for name in ("training.png", "evaluation.png"):
        pixels = imread(finished[0] / name)[..., :3]
        assert min(pixels.shape[:2]) > 400
        assert (pixels < 0.5).any(axis=2).mean() > 0.005  # ink
        assert (np.ptp(pixels, axis=2) > 0.3).mean() > 0.001  # in colour: the curves


def test_samples_can_be_read(finished):
    folder, _ = finished
    done = python("-m", "trainer.samples", str(folder), "--step", "1", "--limit", "3")
    assert done.returncode == 0, done.stderr
    first = read_rows(folder / SAMPLES)[0]
    assert first["question"] in done.stdout
    assert f"3 of {SAMPLES_A_STEP} samples shown" in done.stdout
