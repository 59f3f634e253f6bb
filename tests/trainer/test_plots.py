"""The plots: any run that got somewhere has a picture, however odd its rows."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from trainer.charts import _budget_ranges
from trainer.plots import plot_evaluation, plot_training


def evaluation(phase: str, budgets: list[int], samples: int = 20, step: int = 0) -> dict[str, Any]:
    rng = random.Random(phase)
    used = [[b, max(1, round(rng.gauss(b, 3))), rng.random() < 0.5] for b in budgets * samples]
    cells = [
        {"budget": b, "mean_tokens": float(b), "accuracy": rng.random() if samples else None}
        for b in budgets
    ]
    return {"step": step, "phase": phase, "overall": {}, "budgets": cells, "used": used}


def metrics(steps: int, **others: float | None) -> list[dict[str, Any]]:
    names = ("reward/mean", "reward/correctness", "reward/length", "length/deviation")
    names = (*names, "length/correlation", "policy/kl", "policy/entropy")
    return [{"step": s, "metrics": {name: s / 9 for name in names} | others} for s in range(steps)]


def ink(path: Path) -> int:
    """How many pixels of a picture are not white; it is a readable PNG of README size."""
    image = imread(path)
    assert image.shape[1] == 1650 and image.shape[0] > 600
    return int((image[..., :3] < 0.99).any(-1).sum())


@pytest.mark.parametrize(
    "rows",
    [
        [evaluation("before", [8, 16, 32, 96]), evaluation("after", [8, 16, 32, 96])],
        [evaluation("before", [100, 512, 3600]), evaluation("during", [100, 512, 3600], step=5)],
        [evaluation("before", [32]), evaluation("after", [32])],
        [evaluation("before", [32], samples=1)],
        [evaluation("after", [32, 8])],
        [evaluation("before", [8, 16], samples=0), evaluation("after", [8, 16])],
        [evaluation("before", [8, 16], samples=0)],
        [evaluation("before", [])],
    ],
    ids=["four", "log", "one budget", "one sample", "after", "half empty", "no samples", "nothing"],
)
def test_evaluation_of_any_shape(tmp_path, rows):
    plot_evaluation(rows, tmp_path / "evaluation.png")
    assert ink(tmp_path / "evaluation.png") > 5000


def test_evaluation_shows_the_last_of_each_kind(tmp_path):
    first = [evaluation("before", [8, 96]), evaluation("during", [8, 96], step=10)]
    last = [*first, evaluation("after", [8, 96])]
    for name, rows in (("a", last), ("b", [last[0], last[2]]), ("c", first)):
        plot_evaluation(rows, tmp_path / name)
    assert np.array_equal(imread(tmp_path / "a", "png"), imread(tmp_path / "b", "png"))
    assert not np.array_equal(imread(tmp_path / "a", "png"), imread(tmp_path / "c", "png"))


def test_no_evaluation_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no evaluation"):
        plot_evaluation([], tmp_path / "evaluation.png")
    assert not (tmp_path / "evaluation.png").exists()


@pytest.mark.parametrize(
    "rows",
    [
        metrics(30),
        metrics(1),
        [],
        metrics(5, **{"policy/kl": None, "length/deviation": float("nan")}),
        [{"step": 1, "metrics": {}}],
    ],
    ids=["thirty", "one step", "no step", "unknown values", "no metrics"],
)
def test_training_of_any_shape(tmp_path, rows):
    plot_training(rows, tmp_path / "training.png")
    assert ink(tmp_path / "training.png") > 5000


@pytest.mark.parametrize(
    ("members", "text"), [([1], "16"), ([0, 1, 2], "8–32"), ([0, 2, 3], "8, 32–64")]
)
def test_budget_ranges(members, text):
    assert _budget_ranges(np.array([8.0, 16.0, 32.0, 64.0]), np.array(members)) == text
