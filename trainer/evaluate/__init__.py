"""Evaluation: accuracy and length control on held-out problems at fixed budgets."""

from trainer.evaluate.budgets import evaluate

__all__ = ["evaluate"]
