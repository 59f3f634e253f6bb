"""What several tests of the trainer build: composed configurations and graded rollouts."""

import copy
import functools

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from trainer.config import Config, parse_config
from trainer.run import CONF  # importing it registers the resolver that conf/ uses
from trainer.types import Completion, Problem, Prompt, Rollout, Score


@functools.cache
def _composed(overrides: tuple[str, ...]) -> dict:
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        raw = compose("config", overrides=list(overrides))
    return OmegaConf.to_container(raw, resolve=True)


def raw_config(*overrides: str) -> dict:
    """What hydra makes of conf/ and the overrides, as the plain dict that parse_config takes."""
    return copy.deepcopy(_composed(overrides))


def make_config(*overrides: str) -> Config:
    return parse_config(raw_config(*overrides))


def make_rollout(
    *,
    group: int = 0,
    mode: str = "exact",
    budget: int = 10,
    right: float = 1.0,
    reason: str = "correct",
    logprobs: tuple[float, ...] = (-0.5,),
    problem: Problem | None = None,
) -> Rollout:
    """A rollout with what the reward and the metrics read; one token for each log-prob."""
    problem = problem or Problem("p-0", "1+1=?", ("2",))
    completion = Completion([7] * len(logprobs), list(logprobs), truncated=False)
    prompt = Prompt(group, problem, mode, budget, (1, 2))
    return Rollout(prompt, 0, completion, "", Score(right, reason, None))
