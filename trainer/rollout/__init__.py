"""Generation in process, on the training weights themselves."""

from trainer.rollout.engine import RolloutEngine
from trainer.rollout.requests import Forced, Forcing, Request, Sampling
from trainer.rollout.scheduler import RolloutStats

__all__ = ["Forced", "Forcing", "Request", "RolloutEngine", "RolloutStats", "Sampling"]
