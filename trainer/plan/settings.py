"""What a plan is asked for: the run's own configuration, a machine, and a few keys of the plan."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from os.path import isdir
from pathlib import Path
from typing import Literal

import torch

import trainer.run  # noqa: F401  registers what conf/ needs to be resolved
from trainer.config import Config, ConfigError, parse_config
from trainer.flops import Peak, copy_rate, peak_flops, stated_peak
from trainer.memory import GIB, free_bytes
from trainer.model import ModelConfig, has_bfloat16, read_config
from trainer.preflight import EMBEDDED, find_model
from trainer.settings import CONF, NonNeg, Pos, PosInt, Share, build_settings, compose_settings

SHAPES = CONF / "shapes"


@dataclass(frozen=True)
class HardwareSettings:
    device: Literal["cuda", "cpu"]
    gpus: PosInt
    """Processes, one a GPU."""
    chip: str | None
    """A row of trainer.flops.STATED; null: this machine, measured."""
    memory_gib: Pos | None
    """Of one GPU; null: what this machine has available."""
    usable: Share
    """Share of it that tensors can fill."""
    product: Share
    """Share of the stated or measured rate that products of a training pass reach."""
    attention: Share
    """Share of the rate of products that attention reaches."""
    memory: Share
    """Share of the bandwidth that everything else reaches."""
    link_gb_s: Pos
    """GB/s in which a GPU exchanges gradients and weights with the others, if there are any."""
    host_us: NonNeg
    """Microseconds in which the host starts one op: a pass cannot be faster than its ops."""


@dataclass(frozen=True)
class PlanSettings:
    price_per_hour: NonNeg | None
    """Dollars for one GPU; null: no dollars are shown."""
    response_tokens: Pos | None
    """Mean length of a response; null: that of the budgets, 2,050 in the paper's recipe."""
    prompt_tokens: PosInt
    """Mean length of a prompt; at most data.max_prompt_tokens is taken."""
    shape: str | None
    """Folder with a config.json, or a name in conf/shapes; null: found from model.path."""
    json: str | None
    """File for everything the plan has found."""
    png: str | None
    """File for a picture of seconds and memory."""


@dataclass(frozen=True)
class Asked:
    """What is planned."""

    config: Config
    hardware: HardwareSettings
    plan: PlanSettings
    name: str  # of the hardware
    model: ModelConfig

    @property
    def dtype(self) -> torch.dtype:
        """What computes."""
        return getattr(torch, self.config.model.dtype)

    @property
    def shards(self) -> int:
        """By how many masters, moments and gradients are divided: train.parallel."""
        return self.hardware.gpus if self.config.train.parallel == "fsdp" else 1

    @property
    def capacity(self) -> float:
        """Bytes that tensors can take on one GPU."""
        hardware = self.hardware
        whole = hardware.memory_gib and hardware.memory_gib * GIB
        return hardware.usable * (whole or free_bytes(torch.device(hardware.device)))

    @property
    def peak(self) -> Peak:
        """Stated, or measured here."""
        if self.hardware.chip:
            return stated_peak(self.hardware.chip)
        device = torch.device(self.hardware.device)
        rates = [peak_flops(device, dtype) for dtype in (torch.bfloat16, torch.float32)]
        return Peak(*rates, copy_rate(device))


def read_asked(overrides: Sequence[str]) -> Asked:
    """The command line, as trainer.run would read it plus hardware= and the keys of PlanSettings.

    Raises ConfigError with the key. Nothing is downloaded: the model is a config.json at hand.
    """
    keys = {field.name for field in dataclasses.fields(PlanSettings)}
    given = {o.partition("=")[0]: o for o in overrides}
    name = given.get("hardware", "hardware=8xh100").partition("=")[2]
    known = sorted(file.stem for file in (CONF / "hardware").glob("*.yaml"))
    if name not in known:
        raise ConfigError(f"hardware: {name!r} is not one of {', '.join(known)}")
    rest = [f"plan.{o}" if o.partition("=")[0] in keys else o for o in overrides]
    rest = [o for o in rest if not o.startswith("hardware=")]
    if "scale" not in given:
        rest.append("scale=paper")
    raw = compose_settings(".", ["+plan=default", f"+hardware={name}", *rest])
    hardware = build_settings(HardwareSettings, raw.pop("hardware"), "hardware")
    plan = build_settings(PlanSettings, raw.pop("plan"), "plan")
    if hardware.chip and stated_peak(hardware.chip) is None:
        raise ConfigError(f"hardware.chip: trainer/flops.py states nothing for {hardware.chip!r}")
    config = parse_config(raw)
    if config.rollout.prompts < hardware.gpus:
        raise ConfigError(
            f"hardware.gpus: {hardware.gpus} GPUs for rollout.prompts={config.rollout.prompts}: "
            "a group is drawn by one of them"
        )
    return Asked(on_device(config, hardware.device), hardware, plan, name, find_shape(config, plan))


def on_device(config: Config, device: str) -> Config:
    """The configuration with the planned device; model.dtype=auto is what it would be there."""
    dtype = config.model.dtype
    if dtype == "auto":
        dtype = "bfloat16" if device == "cuda" or has_bfloat16(device) else "float32"
    return dataclasses.replace(
        config, model=dataclasses.replace(config.model, device=device, dtype=dtype)
    )


def find_shape(config: Config, plan: PlanSettings) -> ModelConfig:
    """The model's sizes: plan.shape, else model.path when it is a folder or is in conf/shapes."""
    path = plan.shape or config.model.path
    stored = SHAPES / Path(path).name
    if path == EMBEDDED or isdir(path):
        return read_config(find_model(path))
    if isdir(stored):
        return read_config(stored)
    known = ", ".join(sorted(folder.name for folder in SHAPES.iterdir()))
    raise ConfigError(
        f"plan.shape: no config.json at hand for {path}; shape=FOLDER, or one of {known}"
    )
