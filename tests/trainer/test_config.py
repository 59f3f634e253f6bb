"""The configuration: every setting that cannot work is refused, by name, before anything loads."""

import dataclasses
import math
import typing

import pytest
from hydra.errors import ConfigCompositionException, MissingConfigException
from trainer_helpers import make_config, raw_config

import trainer.config as settings
from trainer.config import Config, ConfigError, parse_config

# Written down a second time on purpose: the settings where 0 means something.
ZERO_IS_FINE = {
    "memory.budget_gib",
    "grading.alarm_share",
    "seed", "threads", "reward.alpha_exact", "reward.alpha_max", "reward.delta", "rollout.top_k",
    "rollout.pages", "algorithm.clip_low", "algorithm.clip_high", "algorithm.kl_coef",
    "algorithm.entropy_coef", "optim.warmup_steps", "optim.half_life", "optim.beta1", "optim.beta2",
    "optim.weight_decay", "evaluate.every", "evaluate.temperature",
    "train.self_check_every",
}  # fmt: skip
SHARES = {
    "grading.alarm_share",
    "reward.delta", "rollout.top_p", "evaluate.top_p", "algorithm.clip_low", "optim.beta1",
    "optim.beta2",
}  # fmt: skip


def leaves(cls: type = Config, prefix: str = "") -> dict[str, typing.Any]:
    """{"optim.lr": float, ...}: every setting and its plain type."""
    found = {}
    for key, hint in typing.get_type_hints(cls).items():  # without extras: Annotated is stripped
        inner = dataclasses.is_dataclass(hint)
        found |= leaves(hint, f"{prefix}{key}.") if inner else {prefix + key: hint}
    return found


LEAVES = leaves()
NUMBERS = [key for key, hint in LEAVES.items() if hint in (int, float)]


def parse_with(key: str, value: object) -> Config:
    """The embedded configuration with one value replaced."""
    raw = raw_config("scale=embedded", "+experiment=l1_exact")
    *groups, name = key.split(".")
    target = raw
    for group in groups:
        target = target[group]
    target[name] = value
    return parse_config(raw)


def assert_refused(key: str, value: object, message: str = "") -> None:
    with pytest.raises(ConfigError) as caught:
        parse_with(key, value)
    text = str(caught.value)
    assert text.startswith(f"{key}: "), f"{key}={value!r} gave {text!r}"
    assert message in text


# Types and ranges, setting by setting ---------------------------------------------------------


def test_the_listed_settings_exist():
    assert len(NUMBERS) > 35 and set(NUMBERS) >= ZERO_IS_FINE | SHARES


@pytest.mark.parametrize("key", NUMBERS)
def test_a_number_must_be_one(key):
    for value in (math.nan, math.inf, -math.inf, -1, -1.0, None, "1", "x", True, [1], {"a": 1}):
        assert_refused(key, value)
    if LEAVES[key] is int:
        assert_refused(key, 1.5, "expected int")
        assert_refused(key, 4.0, "expected int")


@pytest.mark.parametrize("key", NUMBERS)
def test_zero(key):
    if key not in ZERO_IS_FINE:
        assert_refused(key, 0)
        return
    config = parse_with(key, 0)
    for part in key.split("."):
        config = getattr(config, part)
    assert config == 0 and type(config) is LEAVES[key]  # an int is taken for a float


@pytest.mark.parametrize("key", sorted(SHARES))
def test_a_share_is_at_most_one(key):
    assert_refused(key, 1.01)


def test_delta_may_leave_a_margin_below_the_budget():
    assert parse_with("reward.delta", -0.6).reward.delta == -0.6
    assert_refused("reward.delta", -1.0, "more than -1")


@pytest.mark.parametrize("key", [key for key, hint in LEAVES.items() if hint is bool])
def test_a_switch_is_true_or_false(key):
    for value in (0, 1, "true", None):
        assert_refused(key, value, "expected bool")


@pytest.mark.parametrize(
    "key", [k for k, h in LEAVES.items() if typing.get_origin(h) is typing.Literal]
)
def test_a_choice_is_one_of_those_listed(key):
    for value in ("bogus", None, "True" if key == "train.share_prompts" else True, [], {}):
        assert_refused(key, value, f"is not one of {typing.get_args(LEAVES[key])[0]}")


@pytest.mark.parametrize("key", [key for key, hint in LEAVES.items() if hint is str])
def test_a_text_is_text(key):
    for value in (None, 3, True, ["a"]):
        assert_refused(key, value, "expected str")


@pytest.mark.parametrize("value", [[], None, "512", 512, [0], [-1], ["512"], [1.5], [True], [[1]]])
def test_evaluation_budgets(value):
    assert_refused("evaluate.budgets", value)


def test_skipped_budgets_are_a_list_or_nothing():
    assert parse_with("budget.skip", [40, 64]).budget.skip == (40, 64)
    for value in ([], [0], ["40"], 40, [1.5]):
        assert_refused("budget.skip", value)
    assert_refused("budget.skip", list(range(12, 97)), "leaves no budget from 12 to 96")


def test_wandb_is_a_name_or_nothing():
    assert parse_with("log.wandb", None).log.wandb is None
    assert parse_with("log.wandb", "lcpo").log.wandb == "lcpo"
    assert_refused("log.wandb", True)


def test_allowed_changes_are_keys_or_nothing():
    assert parse_with("resume.allow_changes", ["optim."]).resume.allow_changes == ("optim.",)
    for value in ([], [1], "optim.lr", True):
        assert_refused("resume.allow_changes", value)


@pytest.mark.parametrize("key", LEAVES)
def test_nothing_may_be_missing(key):
    raw = raw_config("scale=embedded", "+experiment=l1_exact")
    *groups, name = key.split(".")
    target = raw
    for group in groups:
        target = target[group]
    del target[name]
    with pytest.raises(ConfigError, match=rf"^{key}: missing"):
        parse_config(raw)


def test_unknown_keys_are_refused_with_those_there_are():
    assert_refused("bogus", 1, "there are name, scale, dir")
    assert_refused("optim.learning_rate", 1e-4, "there are lr, warmup_steps, half_life")
    assert_refused("model._target_", "os.system", "no such setting")


@pytest.mark.parametrize("value", [None, 3, "x", []])
def test_a_group_is_a_group(value):
    assert_refused("optim", value, "expected a group of settings")
    with pytest.raises(ConfigError, match=r"^config: expected a group"):
        parse_config(value)


# Contradictions -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "overrides"),
    [
        ("budget.min", ["budget.min=97"]),
        ("budget.max", ["budget.max=129"]),
        ("budget.max", ["rollout.max_response_tokens=95"]),
        ("rollout.samples", ["rollout.samples=1"]),
        ("rollout.samples", ["rollout.samples=1", "algorithm.estimator=rloo"]),
        ("algorithm.updates", ["algorithm.updates=3"]),
        ("algorithm.updates", ["algorithm.updates=64"]),
        ("rollout.top_p", ["rollout.top_p=0.95"]),
        ("rollout.top_p", ["rollout.top_k=50"]),
        ("algorithm.old_logprob", ["algorithm.old_logprob=rollout"]),
        ("algorithm.old_logprob", ["algorithm.old_logprob=rollout", "rollout.engine=vllm"]),
        ("rollout.engine", ["rollout.engine=vllm", "rollout.batch_invariant=true"]),
        ("rollout.engine", ["rollout.engine=vllm", "rollout.cuda_graphs=true"]),
        ("train.micro_batch_tokens", ["train.micro_batch_tokens=191"]),
        ("train.micro_batch_tokens", ["data.max_prompt_tokens=8065"]),
        ("algorithm.clip_low", ["algorithm.clip_low=1.0"]),
        ("optim.beta1", ["optim.beta1=1"]),
        ("optim.beta2", ["optim.beta2=1.0"]),
        ("evaluate.top_p", ["evaluate.top_p=0"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_t26_contradictions_are_refused(key, overrides):
    with pytest.raises(ConfigError, match=rf"^{key}: "):
        make_config("scale=embedded", *overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ["budget.min=96"],
        ["budget.max=128"],
        ["budget.mode=none", "budget.max=129"],
        ["rollout.samples=1", "algorithm.estimator=dr_grpo"],
        ["algorithm.updates=32"],
        ["algorithm.old_logprob=rollout", "rollout.batch_invariant=true"],
        ["train.micro_batch_tokens=192"],
        ["algorithm.clip_low=0.99"],
    ],
    ids=" ".join,
)
def test_the_last_value_that_works_is_taken(overrides):
    make_config("scale=embedded", *overrides)


# From the command line ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("+bogus=1", "bogus"),
        ("+model._target_=os.system", "model._target_"),
        ("optim.lr=nan", "optim.lr"),
        ("optim.lr=-inf", "optim.lr"),
        ("optim.lr=-1", "optim.lr"),
        ("optim.lr=null", "optim.lr"),
        ("optim.lr='1e-4'", "optim.lr"),
        ("train.steps=1e3", "train.steps"),
        ("evaluate.budgets=[]", "evaluate.budgets"),
        ("~optim", "optim"),
    ],
)
def test_t26_bad_overrides_pass_hydra_and_not_us(override, key):
    with pytest.raises(ConfigError, match=rf"^{key}: "):
        make_config("scale=embedded", override)


@pytest.mark.parametrize(
    ("override", "named", "error"),
    [
        ("bogus=1", "bogus", ConfigCompositionException),
        ("optim.learning_rate=1", "learning_rate", ConfigCompositionException),
        ("+experiment=bogus", "experiment/bogus", MissingConfigException),
        ("reward=bogus", "reward/bogus", MissingConfigException),
    ],
)
def test_t26_hydra_refuses_what_it_does_not_know(override, named, error):
    with pytest.raises(error, match=named):
        make_config("scale=embedded", override)


def test_numbers_from_the_command_line():
    c = make_config("scale=embedded", "optim.lr=1e-4", "optim.grad_clip=2", "evaluate.budgets=[9]")
    assert (c.optim.lr, c.optim.grad_clip, c.evaluate.budgets) == (1e-4, 2.0, (9,))
    assert type(c.optim.grad_clip) is float


def test_a_config_cannot_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_config("scale=embedded").optim.lr = 1.0


def test_no_setting_has_a_default_in_code():
    """conf/ is the one place to read them."""
    classes = [c for n, c in vars(settings).items() if n.endswith("Settings")] + [Config]
    assert len(classes) == 15
    for field in (field for cls in classes for field in dataclasses.fields(cls)):
        assert field.default is field.default_factory is dataclasses.MISSING, field.name
