"""resume -> while: step, log, evaluate, save, stop. Nothing mathematical happens here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.checkpoint import (
    CheckpointError,
    find_checkpoint,
    load_optimizer_tensors,
    optimizer_tensors,
    read_state,
    save_checkpoint,
    verify_checkpoint,
)
from trainer.config import Config, ConfigError
from trainer.data.stream import Cursor
from trainer.evaluate import evaluate
from trainer.files import load_tensors, save_tensors, write_json_atomic
from trainer.model import copy_tokenizer, load_model, save_model
from trainer.plots import plot_evaluation, plot_training
from trainer.preflight import CHECKPOINTS, config_dict, environment, find_model
from trainer.progress import Progress
from trainer.record import EVALUATIONS, METRICS, Recorder, read_rows
from trainer.settings import changes, flatten
from trainer.signals import StopFlag, Stopped
from trainer.step import Trainer, train_step
from trainer.types import Problem

# Settings that may differ between a checkpoint and the run that continues it.
FREE_KEYS = (
    "train.steps",
    "train.self_check_every",
    "evaluate.",
    "checkpoint.",
    "log.",
    "memory.",  # changes no bit
    "grading.workers",
    "grading.alarm_share",
    "resume",
    "dir",
    "threads",
)


@dataclass
class Run:
    """A run folder with what is needed to go on in it."""

    config: Config
    trainer: Trainer
    heldout: tuple[Problem, ...]
    folder: Path
    stop: StopFlag
    failed_saves: int = 0

    @property
    def checkpoints(self) -> Path:
        return self.folder / CHECKPOINTS


def run_loop(run: Run) -> bool:
    """Train to the last step, or until a stop is asked for; True when the run is complete."""
    config, trainer = run.config, run.trainer
    resumed = resume(run)
    run.folder.mkdir(parents=True, exist_ok=True)
    write_json_atomic(run.folder / "config.json", config_dict(config))
    write_json_atomic(run.folder / "environment.json", environment())
    recorder = Recorder(run.folder, config.log, trainer.step if resumed else -1)
    with Progress(config.train.steps, trainer.step, config.name) as progress:
        if resumed:
            progress.message(f"continuing {run.folder} behind step {trainer.step}")
        trainer.on_phase = phase_hook(run.stop, progress)
        try:
            evaluate_if_due(run, recorder, progress)
            while trainer.step < config.train.steps:
                run.stop.poll()
                stats = train_step(trainer)
                recorder.train(stats)
                progress.step(stats)
                evaluate_if_due(run, recorder, progress)
                save_if_due(run, recorder, progress)
        except Stopped:
            # A stop right behind a periodic save finds nothing new to save.
            if trainer.step and not (run.checkpoints / f"step-{trainer.step:08d}").is_dir():
                save(run, recorder, progress)
            progress.message(f"stopped behind step {trainer.step}; the same command continues")
            return False
        finally:
            recorder.close()
    draw(run.folder)
    return True


def evaluate_if_due(run: Run, recorder: Recorder, progress: Progress) -> None:
    """Before, after, and every evaluate.every steps; once each, whatever a stop cut short."""
    config, trainer = run.config, run.trainer
    step, every = trainer.step, config.evaluate.every
    if step == config.train.steps:
        phase = "after"
    elif step == 0:
        phase = "before"
    elif every and step % every == 0:
        phase = "during"
    else:
        return
    if recorder.evaluated(step, phase):
        return
    result = evaluate(
        config.evaluate,
        run.heldout,
        trainer.engine,
        trainer.tokenizer,
        # A dual run is asked in the mode of the table it will be compared with.
        mode="exact" if config.budget.mode == "dual" else config.budget.mode,
        grader=trainer.grader,
        seed=config.seed,
        on_progress=lambda done, total: trainer.on_phase("evaluate", done, total),
    )
    row = {"step": step, "phase": phase, **result}
    recorder.evaluation(row)
    progress.evaluation(row)


def save_if_due(run: Run, recorder: Recorder, progress: Progress) -> None:
    """After the evaluation of the same step, so that a checkpoint implies its row."""
    step = run.trainer.step
    if step == run.config.train.steps or step % run.config.checkpoint.every == 0:
        save(run, recorder, progress)


def phase_hook(stop: StopFlag, progress: Progress) -> Callable[[str, int, int], None]:
    """Shows the phase, and leaves at once where no weight has changed since the last step."""

    def on_phase(phase: str, done: int, total: int) -> None:
        progress.phase(phase, done, total)
        if phase != "update":
            stop.poll()

    return on_phase


def save(run: Run, recorder: Recorder, progress: Progress) -> None:
    """One checkpoint. A failed one is reported and counted; too many in a row end the run."""
    recorder.sync()
    try:
        save_checkpoint(
            run.checkpoints,
            run.trainer.step,
            lambda folder: write_state(run, folder),
            keep=run.config.checkpoint.keep,
        )
        run.failed_saves = 0
    except CheckpointError as error:
        run.failed_saves += 1
        progress.message(f"checkpoint failed ({run.failed_saves} in a row): {error}")
        if run.failed_saves >= run.config.checkpoint.max_failures:
            raise


def write_state(run: Run, folder: Path) -> None:
    """Model in HF layout, tokenizer, optimizer and counters. No RNG state: seeds are derived."""
    trainer, optimizer = run.trainer, run.trainer.optimizer
    save_model(trainer.model, folder)
    copy_tokenizer(find_model(run.config.model.path), folder)
    tensors, steps = optimizer_tensors(optimizer.adamw, dict(trainer.model.named_parameters()))
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
        "config": config_dict(run.config),
    }
    write_json_atomic(folder / "state.json", state)


def resume(run: Run) -> bool:
    """Continue from what `resume` names, if it is there; True when a checkpoint was loaded."""
    asked = run.config.resume
    if asked not in ("auto", "never"):
        checkpoint: Path | None = Path(asked)
        verify_checkpoint(checkpoint)
    else:
        checkpoint = find_checkpoint(run.checkpoints) if run.checkpoints.is_dir() else None
        if asked == "never" and checkpoint is not None:
            raise ConfigError(f"resume: never, but {checkpoint} exists; choose another dir=")
    if checkpoint is None:
        return False
    state = read_state(checkpoint)
    refuse_changes(state["config"], config_dict(run.config), checkpoint)
    load_state(run.trainer, checkpoint, state)
    return True


def load_state(trainer: Trainer, checkpoint: Path, state: dict[str, Any]) -> None:
    """Weights, moments, schedule and cursor of a verified checkpoint, into a fresh trainer."""
    loaded = load_model(checkpoint, dtype=trainer.model.head_weight.dtype)
    trainer.model.load_state_dict(loaded.state_dict())
    optimizer, kept = trainer.optimizer, state["optimizer"]
    load_optimizer_tensors(
        optimizer.adamw,
        dict(trainer.model.named_parameters()),
        load_tensors(checkpoint / "optim.safetensors"),
        kept["steps"],
    )
    counts = {name: kept[name] for name in ("updates", "skipped", "skips_in_row")}
    optimizer.restore(**counts)
    trainer.step, trainer.cursor = state["step"], Cursor(**state["cursor"])


def refuse_changes(before: dict[str, Any], now: dict[str, Any], checkpoint: Path) -> None:
    """ConfigError with a diff when a setting that shapes the result is not the checkpoint's."""
    changed = changes(flatten(before), flatten(now), free=FREE_KEYS)
    if changed:
        raise ConfigError(
            f"resume: {checkpoint} was made with other settings; choose another dir= or undo\n"
            + "\n".join(changed)
        )


def draw(folder: Path) -> None:
    """The plots of a run from its own files."""
    plot_training(read_rows(folder / METRICS), folder / "training.png")
    plot_evaluation(read_rows(folder / EVALUATIONS), folder / "evaluation.png")
