"""Runs of several processes on this machine, with gloo: what torchrun would start."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import load_file, save_file

from tests.helpers import PROCESSES, Finished, set_rank, start_process, tiny_config
from trainer.checkpoint import read_state
from trainer.files import read_json
from trainer.preflight import build_trainer
from trainer.resume import load_state
from trainer.shards import is_divided, whole, whole_state
from trainer.step import train_step
from trainer.world import Joined, World

PATIENCE = timedelta(seconds=30)


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def run_ranks(
    logs: Path, arguments: list[str], size: int = 2, **changes: dict[int, Any]
) -> list[Finished]:
    """`torchrun --nproc-per-node=SIZE -m trainer.run ARGUMENTS`, without torchrun.

    `changes` of helpers._process by rank: signal_at={1: (...)}.
    """
    port = free_port()
    started = []
    for rank in range(size):
        mine = {key: of_rank[rank] for key, of_rank in changes.items() if rank in of_rank}
        log = logs / f"rank-{rank}"
        started.append((start_process(log, arguments, rank=(rank, size, port), **mine), log))
    return [_end(*one) for one in started]


def call_ranks(folder: Path, size: int, work: Callable[..., None], *arguments: Any) -> None:
    """work(world, folder, *arguments) on each of `size` ranks; each must come to its end."""
    port, started = free_port(), []
    for rank in range(size):
        log = folder / f"rank-{rank}"
        process = PROCESSES.Process(
            target=_call, args=(log, (rank, size, port), work, folder, *arguments)
        )
        process.start()
        started.append((process, log))
    for done in [_end(*one) for one in started]:
        assert done.code == 0, done.output


def _end(process: Any, log: Path) -> Finished:
    process.join(90)
    if process.is_alive():
        process.kill()
        process.join()
    return Finished(process.exitcode, log.read_text())


def _call(log: Path, rank: tuple[int, int, int], work: Callable[..., None], *rest: Any) -> None:
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    set_rank(*rank)
    torch.set_num_threads(1)
    with Joined("cpu", PATIENCE) as world:
        work(world, *rest)


# What the ranks do -----------------------------------------------------------------------------


def take_steps(
    world: World, folder: Path, base: Path, cases: dict[str, tuple[str, ...]], steps: int = 2
) -> None:
    """Steps of each case; rank 0 leaves its metrics, samples, and the first update's gradients."""
    for name, changes in cases.items():
        trainer, _ = build_trainer(tiny_config(base, folder / "run", *changes), world)
        assert is_divided(trainer.model) == (world.size > 1 and "train.parallel=fsdp" in changes)
        kept: dict[str, torch.Tensor] = {}
        clip = torch.nn.utils.clip_grad_norm_

        def keeping(parameters: Any, *rest: Any, kept=kept, trainer=trainer, clip=clip) -> Any:
            if not kept:
                named = trainer.model.named_parameters()
                kept |= {name: whole(p.grad).clone() for name, p in named}
            return clip(parameters, *rest)

        with mock.patch.object(torch.nn.utils, "clip_grad_norm_", keeping):
            done = [train_step(trainer) for _ in range(steps)]
        if world.leads:
            save_file(kept, folder / f"{name}-{world.size}.safetensors")
            found = {
                "metrics": [stats.metrics for stats in done],
                "timing": [stats.seconds for stats in done],
                "samples": [[r.completion.token_ids for r in stats.rollouts] for stats in done],
                "groups": [[r.prompt.group for r in stats.rollouts] for stats in done],
            }
            (folder / f"{name}-{world.size}.json").write_text(json.dumps(found))


def taken(folder: Path, name: str, size: int) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What take_steps has left: (metrics and samples, gradients)."""
    found = folder / f"{name}-{size}"
    return read_json(found.with_suffix(".json")), load_file(found.with_suffix(".safetensors"))


def load_and_collect(
    world: World, folder: Path, base: Path, checkpoint: Path, *changes: str
) -> None:
    """A checkpoint into a fresh trainer and out of it again, to state-SIZE.safetensors."""
    trainer, _ = build_trainer(tiny_config(base, folder / "run", *changes), world)
    state = read_state(checkpoint)
    load_state(trainer, checkpoint, state)
    weights = {name: p.clone() for name, p in trainer.working.named_parameters()}
    masters, moments, steps = whole_state(trainer.model, trainer.optimizer, world)
    assert steps == state["optimizer"]["steps"]
    if world.leads:
        contents = masters.state_dict() | moments
        for name, working in weights.items():  # in float32 the copy that computes is the master
            torch.testing.assert_close(working, contents[name], rtol=0, atol=0)
        save_file(
            {k: v.clone() for k, v in contents.items()}, folder / f"state-{world.size}.safetensors"
        )
