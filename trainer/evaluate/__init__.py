"""Evaluation: accuracy and length control on held-out problems at fixed budgets."""

import os

# Before torch, and here, as `python -m trainer.evaluate` imports this first: a spin-waiting OpenMP
# team collapses when another process wants its core.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from trainer.evaluate.budgets import evaluate

__all__ = ["evaluate"]
