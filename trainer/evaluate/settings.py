"""What an evaluation is asked for: a frozen dataclass, as strict as the configuration of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os.path import isdir
from pathlib import Path
from typing import Any, Literal

from trainer.config import ConfigError, GradingSettings, ModelSettings
from trainer.files import read_json
from trainer.settings import Count, NonNeg, Pos, PosInt, Share, build_settings, compose_settings

SCALES = ("auto", "embedded", "paper")


@dataclass(frozen=True)
class S1Settings:
    """Budget forcing in both directions, arXiv 2501.19393."""

    wait: str
    """Takes the place of an early end of the thinking."""
    final: str
    """Forced at the end of the thinking: closes it and opens the answer's box."""
    answer_tokens: PosInt
    """Drawn behind `final`. They and `final` count: thinking ends so far before the budget."""
    waits: Count
    """Most `wait`s in a sample; 0 only ever stops."""


@dataclass(frozen=True)
class ApiSettings:
    """An OpenAI-compatible endpoint, for method=api."""

    url: str | None
    """Up to and with `/v1`."""
    model: str | None
    key_env: str
    """Environment variable that holds the key; it is neither stored nor shown."""
    limit_key: Literal["max_tokens", "max_completion_tokens"]
    """How the endpoint calls the token limit."""
    concurrency: PosInt
    """Requests under way at once."""
    retries: Count
    """Of one request, with growing pauses, after an answer that may be better next time."""
    timeout_s: Pos
    usd_per_million_prompt: NonNeg
    usd_per_million_completion: NonNeg
    """Prices, to show the cost."""


@dataclass(frozen=True)
class EvaluationSettings:
    scale: Literal["embedded", "paper"]
    """Whose defaults hold, of conf/evaluation/scale/."""
    model: ModelSettings
    name: str | None
    """What the method is called in tables; null makes it from model, method and mode."""
    method: Literal["generate", "s1", "truncate", "api"]
    """generate: the model by itself. s1: budget forcing. truncate: cut at the budget."""
    mode: Literal["exact", "max", "none"]
    """The budget in the prompt's words. none with method=generate has no budget at all."""
    data: tuple[str, ...]
    """Names of trainer/evaluate/sets.py, files, or `hub:owner/name[/config][:split]`."""
    data_dir: str | None
    """Folder with NAME.jsonl, NAME.json or NAME.parquet, looked into before the Hub."""
    problems: Count
    """The first so many of each data set; 0 takes all."""
    budgets: tuple[PosInt, ...]
    n: PosInt
    """Samples a problem and budget."""
    temperature: NonNeg
    top_p: Share
    limit_factor: Pos
    """Response limit as a multiple of the budget."""
    max_tokens: PosInt
    """Response limit where there is no budget."""
    require_think: bool
    """No `</think>` means incorrect. Off for models that do not write the tag."""
    grading: GradingSettings
    """As in a run; the workers grade one sample at a time."""
    seed: Count
    bootstrap: PosInt
    """Resamples of the problems, for the interval."""
    batch_size: PosInt
    page_size: PosInt
    pages: Count
    """Of the rollout engine, as in a run."""
    s1: S1Settings
    api: ApiSettings
    words: dict[str, tuple[str, ...]]
    """Words of each kind of behaviour, conf/evaluation/words/."""
    out: str | None
    """Folder of the results; null makes it from the name, under runs/."""


def read_settings(overrides: Sequence[str]) -> EvaluationSettings:
    """Settings from `key=value` arguments, hydra's grammar; ConfigError naming the key.

    `scale=auto`, the default, takes the scale of the run that made the model, and paper elsewhere.
    """
    asked = [a.partition("=")[2] for a in overrides if a.startswith("scale=")]
    path = [a.partition("=")[2] for a in overrides if a.startswith("model.path=")]
    scale = asked[-1] if asked else "auto"
    if scale not in SCALES:
        raise ConfigError(f"scale: {scale!r} is not one of {', '.join(SCALES)}")
    if scale == "auto":
        scale = scale_of((path or ["embedded"])[-1])
    rest = [a for a in overrides if not a.startswith("scale=")]
    settings = build_settings(
        EvaluationSettings, compose_settings("evaluation", [f"scale={scale}", *rest]), ""
    )
    _cross_check(settings)
    return settings


def scale_of(model_path: str) -> str:
    """The scale of the run that a model folder belongs to."""
    if model_path == "embedded":
        return "embedded"
    config = run_config(model_path)
    return config["scale"] if config else "paper"


def run_config(model_path: str) -> dict[str, Any] | None:
    """The configuration of the run that `model_path` (run folder or checkpoint) is of, or None."""
    folder = Path(model_path)
    if not isdir(folder):  # also for a name too long for any, where Path.is_dir raises
        return None
    if (folder / "checkpoints").is_dir() and (folder / "config.json").is_file():
        return read_json(folder / "config.json")
    if (folder / "state.json").is_file():
        return read_json(folder / "state.json")["config"]
    return None


def _cross_check(settings: EvaluationSettings) -> None:
    for broken, message in (
        (settings.top_p == 0, "top_p: must be more than 0, got 0"),
        (
            settings.method == "api" and not (settings.api.url and settings.api.model),
            "api.url: method=api needs api.url=https://.../v1 and api.model=NAME",
        ),
        (
            settings.api.url is not None
            and not settings.api.url.startswith(("https://", "http://")),
            f"api.url: {settings.api.url!r} is not an http(s) address",
        ),
        (
            len(set(settings.budgets)) < len(settings.budgets),
            f"budgets: {list(settings.budgets)} names one twice",
        ),
        (
            len(set(settings.data)) < len(settings.data),
            f"data: {list(settings.data)} names one twice",
        ),
    ):
        if broken:
            raise ConfigError(message)
