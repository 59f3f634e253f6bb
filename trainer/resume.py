"""What a checkpoint of a run holds, how a run goes on from it, and what may change in between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from trainer.checkpoint import (
    find_checkpoint,
    load_optimizer_tensors,
    read_state,
    verify_checkpoint,
)
from trainer.config import Config, ConfigError
from trainer.data.stream import Cursor
from trainer.files import load_tensors, save_tensors, write_json_atomic
from trainer.model import Decoder, copy_tokenizer, load_model, save_model
from trainer.preflight import config_dict, find_model
from trainer.settings import changes, flatten
from trainer.shards import part_like
from trainer.step import Trainer

# Settings that may differ between a checkpoint and the run that continues it.
FREE_KEYS = (
    "train.steps",
    "train.self_check_every",
    "train.parallel",  # nor the number of ranks: both change the order of sums only
    "evaluate.",
    "checkpoint.",
    "log.",
    "grading.workers",
    "grading.alarm_share",
    "memory.",  # changes no bit
    "resume",
    "dir",
    "threads",
)
CONTENTS = "data.train (contents)"  # the problems themselves, in a diff


def write_state(
    trainer: Trainer,
    folder: Path,
    model: Decoder,
    tensors: dict[str, Tensor],
    steps: dict[str, int],
) -> None:
    """Model in HF layout, tokenizer, optimizer and counters. No RNG state: seeds are derived.

    `model`, `tensors`, `steps` are shards.whole_state: nothing here depends on how many ranks
    there are.
    """
    config, optimizer = trainer.config, trainer.optimizer
    save_model(model, folder)
    copy_tokenizer(find_model(config.model.path), folder)
    save_tensors(folder / "optim.safetensors", tensors)
    state = {
        "step": trainer.step,
        "cursor": {"epoch": trainer.cursor.epoch, "index": trainer.cursor.index},
        "optimizer": {
            "steps": steps,
            "updates": optimizer.updates,
            "skipped": optimizer.skipped,
            "skips_in_row": optimizer.skips_in_row,
        },
        "config": config_dict(config),
        "data": trainer.stream.fingerprint,
    }
    write_json_atomic(folder / "state.json", state)


def resume(config: Config, trainer: Trainer, root: Path) -> tuple[Path | None, list[str]]:
    """Load what resume.checkpoint names, or the newest under `root`: (its folder, what changed).

    (None, []) when there is nothing to continue. Rank 0 chooses and verifies, all load: the folder
    must be there for each of them. The list has a line for each change that
    resume.allow_changes let pass. ConfigError for other changes, CheckpointError for damage.
    """
    world = trainer.world
    checkpoint = world.tell(choose_checkpoint(config, root) if world.leads else None)
    if checkpoint is None:
        return None, []
    state = read_state(checkpoint)
    changed = refuse_changes(state, config, trainer.stream.fingerprint, checkpoint)
    load_state(trainer, checkpoint, state)
    return checkpoint, changed


def choose_checkpoint(config: Config, root: Path) -> Path | None:
    """What resume.checkpoint names, or the newest under `root`, verified."""
    settings = config.resume
    if settings.checkpoint not in ("auto", "never"):
        checkpoint: Path | None = Path(settings.checkpoint)
        verify_checkpoint(checkpoint)
    else:
        checkpoint = find_checkpoint(root, allow_older=settings.allow_older)
        if settings.checkpoint == "never" and checkpoint is not None:
            raise ConfigError(f"resume: never, but {checkpoint} exists; choose another dir=")
    return checkpoint


def refuse_changes(
    state: dict[str, Any], config: Config, data: dict[str, Any], checkpoint: Path
) -> list[str]:
    """ConfigError with a diff when what shapes the result is not the checkpoint's.

    `data` is the fingerprint of the problems. Returns the diff of what resume.allow_changes allows.
    """
    before = flatten(state["config"]) | {CONTENTS: state.get("data")}
    now = flatten(config_dict(config)) | {CONTENTS: data}
    allowed = config.resume.allow_changes or ()
    refused = changes(before, now, free=FREE_KEYS + allowed)
    if refused:
        raise ConfigError(
            f"resume: {checkpoint} was made with other settings or data; choose another dir=, undo "
            "these, or name them in resume.allow_changes=[...]\n" + "\n".join(refused)
        )
    return changes(before, now, free=FREE_KEYS)


def load_state(trainer: Trainer, checkpoint: Path, state: dict[str, Any]) -> None:
    """Weights, moments, schedule and cursor of a verified checkpoint, into a fresh trainer."""
    loaded = load_model(checkpoint, dtype=trainer.model.head_weight.dtype)
    optimizer, kept = trainer.optimizer, state["optimizer"]
    optimizer.fill(loaded.state_dict())
    parameters = dict(trainer.model.named_parameters())
    moments = load_tensors(checkpoint / "optim.safetensors")
    for key, tensor in moments.items():
        owner = parameters.get(key.rpartition(".")[0])
        moments[key] = tensor if owner is None else part_like(tensor, owner)
    load_optimizer_tensors(optimizer.adamw, parameters, moments, kept["steps"])
    counts = {name: kept[name] for name in ("updates", "skipped", "skips_in_row")}
    optimizer.restore(**counts)
    trainer.step, trainer.cursor = state["step"], Cursor(**state["cursor"])
