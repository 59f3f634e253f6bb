"""Generation in process, on the training weights themselves."""

from trainer.rollout.engine import Request, RolloutEngine, Sampling

__all__ = ["Request", "RolloutEngine", "Sampling"]
