"""Writes golden.json, the numbers of ten tiny steps: `python -m tests.numerics.golden`.

Run it after a change that is meant to change numbers, and say in the commit why they changed.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import kernels
from tests.helpers import one_thread, tiny_trainer, write_tiny_base
from trainer.step import train_step

FILE = Path(__file__).with_name("golden.json")
STEPS = 10
METRICS = (
    "reward/mean",
    "length/mean",
    "policy/loss",
    "policy/kl",
    "policy/entropy",
    "optim/grad_norm",
)
# A rate at which ten steps change the samples, and differences in the last digit do not yet grow.
CHANGES = ("optim.lr=1e-4", "algorithm.entropy_coef=0.001", "rollout.prompts=6", "seed=3")


def golden_rows(*changes: str, steps: int = STEPS) -> list[dict[str, float]]:
    """METRICS of each step, on one thread and the torch backend: no compiled library has a say."""
    with tempfile.TemporaryDirectory() as folder, one_thread(), kernels.override("torch"):
        trainer = tiny_trainer(write_tiny_base(Path(folder)), *CHANGES, *changes)
        found = [train_step(trainer).metrics for _ in range(steps)]
    return [{name: metrics[name] for name in METRICS} for metrics in found]


def main() -> None:
    """Write the file."""
    FILE.write_text(json.dumps(golden_rows(), indent=1) + "\n", encoding="utf-8")
    print(f"wrote {FILE}")


if __name__ == "__main__":
    main()
