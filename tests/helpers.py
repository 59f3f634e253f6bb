"""A tiny random model, settings that run in a second, and runs in processes of their own.

The model's text is noise, so every answer is wrong; but its responses end at random lengths, so the
length reward differs within a group and there is a gradient to follow.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from trainer import loop, preflight, run
from trainer.checkpoint import find_checkpoint
from trainer.config import Config
from trainer.embedded.tokenizer import build_tokenizer
from trainer.files import fingerprint, read_json
from trainer.grading.grader import Grader
from trainer.loop import Run, run_loop
from trainer.model import Decoder, ModelConfig, save_model
from trainer.preflight import build_trainer
from trainer.record import EVALUATIONS, METRICS, SAMPLES, read_rows
from trainer.signals import StopFlag
from trainer.step import Trainer

ROOT = Path(__file__).resolve().parents[1]
VOCAB_ROWS = 320  # more than the tokenizer has ids, as in Qwen: the tail is there in every test
TINY = (
    "+experiment=l1_exact",
    "scale=embedded",
    "threads=1",
    "data.embedded_rows=11",  # 4 prompts a step: epochs end in the middle of steps
    "budget.law=uniform",
    "budget.min=4",
    "budget.max=20",
    "reward.alpha_factor=333.3333",
    "algorithm.kl_coef=0.001",
    "rollout.prompts=4",
    "rollout.samples=3",
    "rollout.temperature=0.6",
    "rollout.max_response_tokens=20",
    "rollout.batch_size=7",
    "train.steps=4",
    "train.micro_batch_tokens=100",  # several micro-batches an update
    "optim.lr=5e-4",  # none of these the recipe's: it may be tuned without moving a test's numbers
    "optim.warmup_steps=0",
    "optim.half_life=0",
    "evaluate.budgets=[4,8]",
    "evaluate.problems=2",
    "evaluate.samples=1",
    "evaluate.every=2",
    "checkpoint.every=2",
    "log.tensorboard=false",
)


def gradient_distance(a: Iterable[torch.Tensor], b: Iterable[torch.Tensor]) -> float:
    """The norm of the difference over the norm of `a`, each over all tensors together.

    Sums in another order leave some 3e-7 of it in float32; a single entry may differ by more, and
    by how much depends on the vendor's products.
    """
    pairs = [(x.double(), y.double()) for x, y in zip(a, b, strict=True)]
    off = sum(float((x - y).square().sum()) for x, y in pairs)
    return (off / sum(float(x.square().sum()) for x, _ in pairs)) ** 0.5


def tiny_decoder(seed: int = 0, end_bias: float = 6.0) -> Decoder:
    """A random decoder of 2 layers and width 32; a higher `end_bias` makes responses shorter.

    Feature 0 of the hidden state is a positive constant before the last norm, and only the EOS row
    of the head reads it: a bias. Weights are larger than at a usual start, so that the next token
    depends on those before.
    """
    tokenizer = build_tokenizer()
    config = ModelConfig(
        "llama", VOCAB_ROWS, 32, 64, 2, 4, 2, 8,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = Decoder(config)
    model.init_weights(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter *= 10
        model.model.embed_tokens.weight[:, 0] = 1.0
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[0] = 0.0
            layer.mlp.down_proj.weight[0] = 0.0
        model.lm_head.weight[:, 0] = 0.0
        model.lm_head.weight[tokenizer.eos_token_id, 0] = end_bias
    return model


def write_tiny_base(folder: Path, *, pad_is_eos: bool = False) -> Path:
    """A model folder with tiny_decoder() and the embedded tokenizer; returns it."""
    tokenizer = build_tokenizer()
    if pad_is_eos:
        tokenizer.pad_token = tokenizer.eos_token
    save_model(tiny_decoder(), folder)
    tokenizer.save_pretrained(folder)
    return folder


def command(base: Path, folder: Path, *changes: str) -> list[str]:
    """The arguments of a tiny run: the model of `base`, the run folder `folder`, and `changes`."""
    return [*TINY, f"model.path={base}", f"dir={folder}", *changes]


def tiny_config(base: Path, folder: Path, *changes: str) -> Config:
    """The configuration of such a command, as hydra composes it."""
    return run.compose_config(command(base, folder, *changes))


def tiny_trainer(base: Path, *changes: str) -> Trainer:
    """What a step works with; no run folder."""
    return build_trainer(tiny_config(base, base / "run", *changes))[0]


def make_run(base: Path, folder: Path, *changes: str) -> Run:
    """What run_loop takes; the signals stay pytest's."""
    config = tiny_config(base, folder, *changes)
    return Run(config, *build_trainer(config), folder, StopFlag())


def run_here(base: Path, folder: Path, *changes: str) -> Run:
    """A run in this process, to its end, but for the plots."""
    job = make_run(base, folder, *changes)
    with one_thread(), mock.patch.object(loop, "draw"):
        assert run_loop(job)
    return job


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Bit equality is promised for a fixed number of threads: another one sums in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def result(folder: Path) -> dict[str, Any]:
    """All of a run's folder that its settings decide: rows without timing, and the last state."""
    newest = find_checkpoint(folder / "checkpoints")
    state = read_json(newest / "state.json")
    rows = {name: read_rows(folder / name) for name in (METRICS, SAMPLES, EVALUATIONS)}
    rows[METRICS] = [{k: row[k] for k in ("step", "metrics")} for row in rows[METRICS]]
    weights = {f: fingerprint(newest / f"{f}.safetensors")["sha256"] for f in ("model", "optim")}
    return rows | weights | {key: state[key] for key in ("step", "cursor", "optimizer")}


@dataclass(frozen=True)
class Finished:
    """How a process ended: its exit code, or minus the signal that killed it."""

    code: int
    output: str


# A server imports everything once (AdamW wants torch._dynamo) and forks each process from that: a
# fresh one within milliseconds.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([__name__, "torch._dynamo"])


def start_process(log: Path, arguments: list[str], **changes: Any) -> multiprocessing.Process:
    """`python -m trainer.run` with `arguments`, all output to `log`; see _process for `changes`."""
    process = PROCESSES.Process(target=_process, args=(log, arguments), kwargs=changes)
    process.start()
    return process


def run_process(log: Path, arguments: list[str], **changes: Any) -> Finished:
    """start_process, and its end."""
    process = start_process(log, arguments, **changes)
    process.join(60)
    if process.is_alive():
        process.kill()
        process.join()
    return Finished(process.exitcode, log.read_text())


def _process(
    log: Path,
    arguments: list[str],
    *,
    signal_at: tuple[str, int, tuple[int, ...]] | None = None,
    fail_at: tuple[str, int] | None = None,
    may_load: bool = True,
    environment: Mapping[str, str] | None = None,
    rank: tuple[int, int, int] | None = None,
) -> None:
    """With `signal_at` = (phase, steps done, signals) it sends itself these signals there; beside
    the phases of Trainer.on_phase there are "start-up", "grading", "backward" and "saving".

    With `fail_at` = (phase, steps done) it fails there. Without `may_load` it exits with 99 when it
    comes to load a model. `rank`: see tests/ranks.py. What is replaced below is gone with the
    process.
    """
    if rank is not None:
        set_rank(*rank)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(environment or {})
    sys.argv = ["trainer/run.py", *arguments]
    loop.draw = mock.Mock()
    if not may_load:
        preflight.load_model = lambda *_, **__: os._exit(99)
    if signal_at is not None:
        left = list(signal_at[2])
        _at(
            *signal_at[:2],
            lambda: [os.kill(os.getpid(), left.pop(0)) for _ in signal_at[2] if left],
        )
    if fail_at is not None:
        _at(*fail_at, _fail)
    run.main()


def set_rank(rank: int, size: int, port: int) -> None:
    """What torchrun tells each process of a run, by its environment."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ |= {"LOCAL_WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def _fail() -> None:
    raise FloatingPointError("on purpose")


def _at(phase: str, steps_done: int, happens: Callable[[], Any]) -> None:
    """Calls `happens` whenever the process comes to the phase behind so many steps."""
    job = {}

    def here(name: str) -> None:
        done = job["run"].trainer.step if job else 0
        if (name, done) == (phase, steps_done):
            happens()

    def announce(module: Any, function: str, name: str) -> None:
        inner = getattr(module, function)

        def outer(*args: Any, **kwargs: Any) -> Any:
            here(name)
            return inner(*args, **kwargs)

        setattr(module, function, outer)

    def remember(started: Run) -> bool:
        job["run"] = started
        return run_loop(started)

    def announcing_hook(*parts: Any) -> Any:
        inner = phase_hook(*parts)

        def on_phase(name: str, done: int, total: int) -> None:
            here(name)
            inner(name, done, total)

        return on_phase

    phase_hook = loop.phase_hook
    loop.phase_hook, run.run_loop = announcing_hook, remember
    announce(preflight, "load_model", "start-up")
    announce(Grader, "submit", "grading")
    announce(torch.Tensor, "backward", "backward")
    announce(loop, "write_state", "saving")
