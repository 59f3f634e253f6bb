"""Everything that can go wrong before a run is paid for, and the parts of the run it yields."""

from __future__ import annotations

import dataclasses
import json
import platform
import subprocess
from importlib.util import find_spec
from os.path import isdir
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

import kernels
import trainer.embedded
from trainer.allocator import keep_freed_memory
from trainer.checkpoint import find_checkpoint
from trainer.config import Config, ConfigError, DataSettings, GradingSettings
from trainer.data.problems import load_problems
from trainer.data.prompts import encode_prompt
from trainer.data.stream import PromptStream
from trainer.embedded.task import make_problem
from trainer.grading.grader import Grader
from trainer.grading.pool import PoolError, WorkerPool
from trainer.memory import free_bytes, recomputed_layers
from trainer.model import Decoder, empty_copy, has_bfloat16, load_model, working_copy
from trainer.optim import Optimizer
from trainer.rollout.build import build_engine
from trainer.shards import divide, is_divided
from trainer.step import Trainer
from trainer.types import Problem
from trainer.world import ALONE, World

EMBEDDED = "embedded"
CHECKPOINTS = "checkpoints"
INVARIANT_OPS = (
    *("linear", "rms_norm", "rope", "swiglu", "varlen_attention", "paged_decode_attention"),
    *("sample_tokens", "linear_logprob", "linear_policy_loss"),
)
WEIGHT_FILES = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt")


def check_packages() -> None:
    """Refuse a foreign `kernels` package: a Hugging Face distribution has the same name."""
    ours = Path(__file__).resolve().parent.parent
    found = Path(kernels.__file__).resolve().parent.parent
    if found != ours:
        raise ConfigError(
            f"the package `kernels` comes from {found}, not from this project; "
            "run from the repository's root or `pip uninstall kernels`"
        )


def find_device(asked: str) -> str:
    """model.device decided: "cpu" or "cuda"; ConfigError for a CUDA device that is not there."""
    cuda = torch.cuda.is_available()
    if asked == "cuda" and not cuda:
        raise ConfigError("model.device: cuda asked for, but torch finds no CUDA device")
    return ("cuda" if cuda else "cpu") if asked == "auto" else asked


def resolve_device(config: Config) -> Config:
    """The configuration with model.device and model.dtype decided."""
    device, dtype = find_device(config.model.device), config.model.dtype
    if dtype == "auto":
        dtype = "bfloat16" if has_bfloat16(device) else "float32"
    return dataclasses.replace(
        config, model=dataclasses.replace(config.model, device=device, dtype=dtype)
    )


def find_model(path: str) -> Path:
    """The HF folder that `model.path` names: `embedded`, a folder, a run folder, or a Hub id."""
    if path == EMBEDDED:
        return Path(trainer.embedded.__file__).parent / "base"
    folder = Path(path)
    if isdir(folder / CHECKPOINTS):  # False for a name too long for any; Path.is_dir raises
        newest = find_checkpoint(folder / CHECKPOINTS)
        if newest is None:
            raise ConfigError(f"model.path: the run {path} has no complete checkpoint yet")
        return newest
    if isdir(folder):
        return folder
    if path.startswith("runs/"):  # where runs are by default: not meant for the Hub
        raise ConfigError(
            f"model.path: no such folder: {path}. L1-Max starts from an L1-Exact run: make one "
            "with `python -m trainer.run +experiment=l1_exact`, or name the folder of a run or "
            "checkpoint: model.path=FOLDER"
        )
    if path.count("/") != 1 or path.startswith((".", "/")):
        raise ConfigError(f"model.path: no such folder: {path}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(path, allow_patterns=list(WEIGHT_FILES)))
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise ConfigError(f"model.path: no folder {path}, and not on the Hub: {error}") from error


def load_data(settings: DataSettings, spec: str, split: str, seed: int) -> tuple[Problem, ...]:
    """Problems of `spec`; the embedded task draws the rows of `split`."""
    if spec == EMBEDDED:
        return tuple(make_problem(seed, i, split) for i in range(settings.embedded_rows))
    found = load_problems(
        spec,
        question_key=settings.question_key,
        answer_key=settings.answer_key,
        kind=settings.kind,
    )
    return found.problems


def load_tokenizer(folder: Path) -> tuple[PreTrainedTokenizerBase, tuple[int, ...]]:
    """A model folder's tokenizer, exactly as tokenizer.json says, and the ids of `</think>`.

    Not AutoTokenizer: it rebuilds the pre-tokenizer of Qwen2 models, other than the file's own.
    """
    if not (folder / "tokenizer.json").is_file():
        raise ConfigError(f"model.path: {folder} has no tokenizer.json")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"model.path: the tokenizer of {folder} has no EOS token")
    if tokenizer.chat_template is None:
        raise ConfigError(f"model.path: the tokenizer of {folder} has no chat template")
    think_end = tuple(tokenizer.encode("</think>", add_special_tokens=False))
    return tokenizer, think_end


def check_batch_invariant(config: Config) -> None:
    """ConfigError where the ops cannot keep what rollout.batch_invariant promises."""
    place = (config.model.device, config.model.dtype)
    if place != ("cpu", "float32"):
        raise ConfigError(
            f"rollout.batch_invariant: exact on the CPU in float32 only, not {' '.join(place)}"
        )
    backends = kernels.active_backends()
    missing = [op for op in INVARIANT_OPS if backends[op] != "cpp"]
    if missing:
        raise ConfigError(
            f"rollout.batch_invariant: needs the compiled library (`make build`); without it "
            f"{', '.join(missing)} may round differently in rollouts and in training"
        )


def build_grader(settings: GradingSettings, require_think: bool) -> Grader:
    """A grader of these tiers; with grading.symbolic its workers have started, or ConfigError."""
    if not settings.symbolic:
        return Grader(require_think)
    if find_spec("math_verify") is None:
        raise ConfigError(
            "grading.symbolic: needs math-verify: pip install 'lcpo-trainer[symbolic]', or turn it "
            "off with grading.symbolic=false"
        )
    pool = WorkerPool(
        "trainer.grading.symbolic",
        workers=settings.workers,
        timeout_seconds=settings.timeout_seconds,
        memory_mib=settings.memory_mib,
    )
    try:
        pool.start()
    except PoolError as error:
        raise ConfigError(f"grading.symbolic: {error} (grading.memory_mib)") from error
    return Grader(require_think, pool, settings.alarm_share)


def build_trainer(config: Config, world: World = ALONE) -> tuple[Trainer, tuple[Problem, ...]]:
    """Load and check everything a run needs; also the held-out problems of its evaluations."""
    folder = find_model(config.model.path)
    tokenizer, think_end = load_tokenizer(folder)
    train = load_data(config.data, config.data.train, "train", config.seed)
    heldout_rows = dataclasses.replace(config.data, embedded_rows=config.evaluate.problems)
    heldout = load_data(heldout_rows, config.data.heldout, "heldout", config.seed)
    device = config.model.device
    if device == "cpu":
        keep_freed_memory()
    dtype = getattr(torch, config.model.dtype)
    model, working = load_policy(folder, config, world)
    reference = None
    if config.algorithm.kl_coef > 0:
        reference = load_model(folder, dtype=dtype, device=device).requires_grad_(False)
    if config.rollout.cuda_graphs and device != "cuda":
        raise ConfigError(f"rollout.cuda_graphs: there are none on {device}")
    if config.rollout.batch_invariant:
        check_batch_invariant(config)
    optimizer = Optimizer(model, config.optim, working, world, divided=is_divided(model))
    learner, parts = (model, world.size) if is_divided(model) else (working, 1)
    learner.model.recomputed = recomputed_layers(
        config.memory,
        model.config,
        tokens=config.train.micro_batch_tokens,
        dtype=dtype,
        parameters=sum(p.numel() for p in model.parameters()) // parts,
        free=free_bytes(torch.device(device)),
    )
    stream = PromptStream(
        train, tokenizer, config.budget, config.seed, config.data.max_prompt_tokens
    )
    engine = build_engine(config, working, folder, tokenizer)
    trainer = Trainer(
        config,
        model,
        working,
        reference,
        tokenizer,
        think_end,
        stream,
        engine,
        optimizer,
        build_grader(config.grading, config.data.require_think),
        world=world,
    )
    fitting = [p for p in heldout if fits(p, tokenizer, config)]
    if not fitting:
        raise ConfigError(
            f"data.max_prompt_tokens: none of {len(heldout)} held-out problems fits "
            f"{config.data.max_prompt_tokens} tokens"
        )
    return trainer, tuple(fitting[: config.evaluate.problems])


def load_policy(folder: Path, config: Config, world: World) -> tuple[Decoder, Decoder]:
    """(float32 masters, what computes), see Trainer; the second is filled by the optimizer."""
    dtype = getattr(torch, config.model.dtype)
    model = load_model(folder, dtype=torch.float32, device=config.model.device)
    if world.size == 1 or config.train.parallel == "replicated":
        return model, working_copy(model, dtype)
    working = empty_copy(model, dtype).requires_grad_(False)
    divide(model, dtype, world)
    return model, working


def fits(problem: Problem, tokenizer: PreTrainedTokenizerBase, config: Config) -> bool:
    """Whether the problem's prompt, with the longest budget, is within data.max_prompt_tokens."""
    budget = max(config.evaluate.budgets)
    ids = encode_prompt(tokenizer, problem.question, "max", budget)
    return len(ids) <= config.data.max_prompt_tokens


def environment() -> dict[str, Any]:
    """Versions, commit and hardware, for the run folder."""
    git = [
        "git",
        "-C",
        str(Path(__file__).parent),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=12",
    ]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    cuda = torch.cuda.is_available()
    return {
        "commit": commit or "unknown",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": platform.platform(),
        "cpu_threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name(0) if cuda else None,
        "kernels": kernels.active_backends(),
    }


def config_dict(config: Config) -> dict[str, Any]:
    """The configuration as plain JSON."""
    return json.loads(json.dumps(dataclasses.asdict(config)))
