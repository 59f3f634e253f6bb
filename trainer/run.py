"""`python -m trainer.run +experiment=l1_exact`: compose, parse, pre-flight, run, exit code.

Exit codes: 0 complete, or stopped on request with a checkpoint; 1 failed while running; 2 refused
before anything expensive started.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

# Before torch: a spin-waiting OpenMP team collapses when another process wants its core.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import hydra
import torch
from omegaconf import DictConfig, OmegaConf

from trainer.closing import Closing, fail
from trainer.config import Config, ConfigError, parse_config
from trainer.loop import Run, run_loop
from trainer.preflight import build_trainer, check_packages, resolve_device
from trainer.scale import resolve_scale
from trainer.settings import CONF, check_named
from trainer.signals import StopFlag
from trainer.world import Joined, World, leads

# In conf/: `${per_scale:EMBEDDED,PAPER}` is the value for the scale of the run.
OmegaConf.register_new_resolver(
    "per_scale",
    lambda embedded, paper, *, _root_: embedded if _root_.scale == "embedded" else paper,
)


def main() -> None:
    """Put the scale that this machine can run in the place of `scale=auto`, then hand to hydra."""
    asked = [a.partition("=")[2] for a in sys.argv[1:] if a.startswith("scale=")]
    try:
        check_named(sys.argv[1:])
        scale, why = resolve_scale(asked[-1] if asked else "auto")
    except ConfigError as error:
        sys.exit(fail(error))
    if leads():
        print(f"scale: {scale} ({why}); choose with scale=embedded or scale=paper", flush=True)
    rest = [a for a in sys.argv[1:] if not a.startswith("scale=")]
    sys.argv = [sys.argv[0], f"scale={scale}", *rest]
    composed()


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def composed(raw: DictConfig) -> None:
    """What hydra composed, as an exit code."""
    with Closing(sys.argv[1:]) as closing:
        check_packages()
        config = checked(raw)
        with Joined(config.model.device) as world:
            run = prepare(config, world)
            closing.begin(run)
            run_loop(run)
    sys.exit(closing.code)


def compose_config(arguments: Sequence[str]) -> Config:
    """The configuration that a run with these arguments, `scale=` too, would have.

    Raises ConfigError as parse_config and resolve_device do.
    """
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        raw = hydra.compose("config", list(arguments))
    return checked(raw)


def checked(raw: DictConfig) -> Config:
    """What hydra composed as a configuration with its device decided; ConfigError."""
    return resolve_device(parse_config(OmegaConf.to_container(raw, resolve=True)))


def prepare(config: Config, world: World) -> Run:
    """The pre-flight: everything loaded and checked, nothing computed."""
    if config.threads:
        torch.set_num_threads(config.threads)
    stop = StopFlag()
    stop.install()
    trainer, heldout = build_trainer(config, world)
    run = Run(config, trainer, heldout, Path(config.dir), stop)
    if world.leads:
        print(f"run folder: {run.folder}", flush=True)
    return run


if __name__ == "__main__":
    main()
