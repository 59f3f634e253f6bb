"""What conf/ holds composes into the recipe, and `scale` fits the machine or is refused."""

import dataclasses
import sys

import pytest
from trainer_helpers import make_config

import trainer.scale
from trainer.config import ConfigError
from trainer.run import CONF, main
from trainer.scale import resolve_scale

EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
SCALES = sorted(path.stem for path in (CONF / "scale").glob("*.yaml"))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes_at_every_scale(experiment, scale):
    config = make_config(f"scale={scale}", f"+experiment={experiment}")
    assert (config.name, config.scale) == (experiment, scale)
    assert config.dir == f"runs/{experiment}-{scale}"


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("reward", sorted(path.stem for path in (CONF / "reward").glob("*.yaml")))
def test_every_reward_can_be_chosen_over_the_experiments_own(reward, scale):
    chosen = make_config(f"scale={scale}", "+experiment=l1_exact", f"reward={reward}").reward
    alone = make_config(f"scale={scale}", f"reward={reward}").reward
    assert chosen == alone
    assert (reward == "paper") == (chosen == make_config(f"scale={scale}").reward)


def test_the_folders_hold_what_is_expected():
    assert {"l1_exact", "l1_max"} <= set(EXPERIMENTS) and SCALES == ["embedded", "paper"]


def test_l1_exact_at_paper_scale_is_the_recipe():
    c = make_config("scale=paper", "+experiment=l1_exact")
    assert (c.train.steps, c.rollout.prompts, c.rollout.samples) == (700, 128, 16)
    assert (c.rollout.temperature, c.rollout.top_p, c.rollout.top_k) == (0.6, 1.0, 0)
    assert (c.data.max_prompt_tokens, c.rollout.max_response_tokens) == (1024, 4096)
    assert (c.algorithm.estimator, c.algorithm.updates) == ("grpo", 2)
    assert (c.algorithm.clip_low, c.algorithm.clip_high) == (0.2, 0.2)
    assert (c.algorithm.kl_coef, c.algorithm.kl_grad) == (0.001, "k3")
    assert (c.algorithm.entropy_coef, c.algorithm.normaliser) == (0.0, "token_mean")
    assert (c.optim.lr, c.optim.grad_clip) == (1e-6, 1.0)
    assert c.optim.warmup_steps == c.optim.half_life == 0  # constant
    assert (c.budget.mode, c.budget.law, c.budget.min, c.budget.max) == (
        "exact", "uniform", 100, 4000,
    )  # fmt: skip
    assert (c.reward.alpha_exact, c.reward.alpha_factor) == (0.0003, 1.0)
    assert (c.evaluate.budgets, c.evaluate.limit_factor) == ((512, 1024, 2048, 3600), 2.0)
    assert (c.evaluate.temperature, c.evaluate.top_p) == (0.6, 0.95)
    assert not c.algorithm.drop_truncated and c.data.require_think


def test_l1_max_differs_where_the_recipe_says():
    exact = make_config("scale=paper", "+experiment=l1_exact")
    c = make_config("scale=paper", "+experiment=l1_max")
    assert (c.train.steps, c.optim.lr, c.budget.mode) == (120, 4e-6, "dual")
    assert c.rollout == dataclasses.replace(exact.rollout, max_response_tokens=4500)
    assert (c.reward, c.algorithm) == (exact.reward, exact.algorithm)
    assert c.model.path == exact.dir, "it starts from where L1-Exact ends"
    small = make_config("scale=embedded", "+experiment=l1_max")
    assert (small.model.path, small.rollout.max_response_tokens) == ("runs/l1_exact-embedded", 128)
    assert (small.reward.delta, small.budget.min, small.budget.max) == (0.0, 16, 72)


@pytest.mark.parametrize("experiment", ["l1_exact", "l1_max"])
def test_a_token_costs_more_in_the_embedded_task(experiment):
    reward = make_config("scale=embedded", f"+experiment={experiment}").reward
    assert reward.alpha_exact == reward.alpha_max
    assert reward.alpha_factor * reward.alpha_exact == pytest.approx(0.6, rel=1e-5)


# Scale ----------------------------------------------------------------------------------------

GPUS = {"none": None, "small": ("RTX 3090", 24 * 10**9), "large": ("H100", 80 * 10**9)}


@pytest.mark.parametrize(
    ("asked", "gpu", "scale"),
    [
        ("auto", "none", "embedded"),
        ("auto", "small", "embedded"),
        ("auto", "large", "paper"),
        ("embedded", "none", "embedded"),
        ("embedded", "large", "embedded"),
        ("paper", "large", "paper"),
    ],
)
def test_scale_that_fits_the_machine(asked, gpu, scale, monkeypatch):
    monkeypatch.setattr(trainer.scale, "_device", lambda: GPUS[gpu])
    found, why = resolve_scale(asked)
    assert found == scale and why
    assert asked != "auto" or gpu == "none" or GPUS[gpu][0] in why


@pytest.mark.parametrize(
    ("gpu", "seen"), [("none", "no CUDA device"), ("small", "RTX 3090 with 24 GB")]
)
def test_paper_scale_without_the_machine_for_it(gpu, seen, monkeypatch):
    monkeypatch.setattr(trainer.scale, "_device", lambda: GPUS[gpu])
    with pytest.raises(ConfigError, match=rf"^scale: .*at least 40 GB.*{seen}.*scale=embedded"):
        resolve_scale("paper")


@pytest.mark.parametrize("asked", ["bogus", "", "Paper"])
def test_unknown_scale(asked):
    with pytest.raises(
        ConfigError, match=rf"^scale: '{asked}' is not one of auto, embedded, paper"
    ):
        resolve_scale(asked)


def test_refused_scale_ends_the_command_with_2_and_no_traceback(monkeypatch, capsys):
    monkeypatch.setattr(trainer.scale, "_device", lambda: None)
    monkeypatch.setattr(sys, "argv", ["trainer.run", "+experiment=l1_exact", "scale=paper"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert (
        error.startswith("ConfigError: scale: paper needs a CUDA device") and "\n" not in error[:-1]
    )
