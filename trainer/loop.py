"""resume -> while: step, log, evaluate, save, stop. Nothing mathematical happens here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trainer.checkpoint import CheckpointError, save_checkpoint
from trainer.config import Config
from trainer.evaluate import evaluate
from trainer.files import write_json_atomic
from trainer.metrics import names_of
from trainer.plots import plot_evaluation, plot_training
from trainer.preflight import CHECKPOINTS, config_dict, environment
from trainer.progress import Progress
from trainer.record import EVALUATIONS, METRICS, Recorder, read_rows
from trainer.resume import resume, write_state
from trainer.shards import whole_state
from trainer.signals import StopFlag, Stopped
from trainer.step import Trainer, train_step
from trainer.types import Problem, StepStats
from trainer.world import Muted


@dataclass
class Run:
    """A run folder with what is needed to go on in it."""

    config: Config
    trainer: Trainer
    heldout: tuple[Problem, ...]
    folder: Path
    stop: StopFlag
    failed_saves: int = 0
    saved: Path | None = None
    """The checkpoint written or loaded last."""
    saved_step: int = 0
    begun: bool = False
    """Whatever was to be continued is loaded."""

    @property
    def checkpoints(self) -> Path:
        return self.folder / CHECKPOINTS


def run_loop(run: Run) -> bool:
    """Train to the last step, or until a stop is asked for; True when the run is complete."""
    config, trainer, world = run.config, run.trainer, run.trainer.world
    run.saved, changed = resume(config, trainer, run.checkpoints)
    run.saved_step, run.begun = trainer.step, True
    recorder = open_folder(run) if world.leads else Muted()
    with (
        Progress(config.train.steps, trainer.step, config.name) if world.leads else Muted()
    ) as progress:
        if run.saved:
            progress.message(f"continuing {run.saved} behind step {trainer.step}")
            for line in changed:
                progress.message(f"changed since, as resume.allow_changes allows: {line.strip()}")
        trainer.on_phase = phase_hook(run.stop, progress)
        try:
            evaluate_if_due(run, recorder, progress)
            while trainer.step < config.train.steps:
                with world.together():
                    run.stop.poll()
                stats = train_step(trainer)
                recorder.train(stats)
                progress.step(stats)
                say_incidents(stats, progress)
                evaluate_if_due(run, recorder, progress)
                save_if_due(run, recorder, progress)
        except Stopped:
            # A stop right behind a periodic save finds nothing new to save.
            saved = (run.checkpoints / f"step-{trainer.step:08d}").is_dir()
            if trainer.step and not world.tell(saved):
                save(run, recorder, progress, last=True)
            return False
        finally:
            recorder.close()
    if world.leads:
        draw(run.folder)
    return True


def say_incidents(stats: StepStats, progress: Progress) -> None:
    """What went wrong in a step that the run survived."""
    if stats.skipped:
        progress.message(
            f"step {stats.step}: update skipped, the gradient norm is not finite; rollouts "
            f"(group/sample, see samples.jsonl): {names_of(stats.rollouts, stats.skipped)}"
        )
    if stats.seconds["memory/halved"]:
        progress.message(
            f"step {stats.step}: out of memory, done again with micro-batches of half the size; "
            "a smaller train.micro_batch_tokens or memory.activations=full saves the time"
        )


def open_folder(run: Run) -> Recorder:
    """The run's folder with its configuration, its logs cut back to where the run goes on."""
    run.folder.mkdir(parents=True, exist_ok=True)
    write_json_atomic(run.folder / "config.json", config_dict(run.config))
    ranks = {"processes": run.trainer.world.size}
    write_json_atomic(run.folder / "environment.json", environment() | ranks)
    return Recorder(run.folder, run.config.log, run.trainer.step if run.saved else -1)


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
    if trainer.world.tell(recorder.evaluated(step, phase)):
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
        world=trainer.world,
        on_progress=lambda done, total: trainer.on_phase("evaluate", done, total),
    )
    row = {"step": step, "phase": phase, **result}
    recorder.evaluation(row)
    progress.evaluation(row)


def save_if_due(run: Run, recorder: Recorder, progress: Progress) -> None:
    """After the evaluation of the same step, so that a checkpoint implies its row."""
    step, last = run.trainer.step, run.trainer.step == run.config.train.steps
    if last or step % run.config.checkpoint.every == 0:
        save(run, recorder, progress, last=last)


def phase_hook(stop: StopFlag, progress: Progress) -> Callable[[str, int, int], None]:
    """Shows the phase, and leaves at once where no weight has changed since the last step."""

    def on_phase(phase: str, done: int, total: int) -> None:
        progress.phase(phase, done, total)
        if phase != "update":
            stop.poll()

    return on_phase


def save(run: Run, recorder: Recorder, progress: Progress, *, last: bool) -> None:
    """One checkpoint. A failed one is reported and counted; too many in a row end the run.

    `last`: no other save will follow, so a failure is one of the run: CheckpointError.
    """
    recorder.sync()
    trainer = run.trainer
    state = whole_state(trainer.model, trainer.optimizer, trainer.world)
    if not trainer.world.leads:
        return
    try:
        run.saved = save_checkpoint(
            run.checkpoints,
            trainer.step,
            lambda folder: write_state(trainer, folder, *state),
            keep=run.config.checkpoint.keep,
        )
        run.saved_step, run.failed_saves = trainer.step, 0
    except CheckpointError as error:
        run.failed_saves += 1
        progress.message(f"checkpoint failed ({run.failed_saves} in a row): {error}")
        if last or run.failed_saves >= run.config.checkpoint.max_failures:
            raise


def draw(folder: Path) -> None:
    """The plots of a run from its own files."""
    plot_training(read_rows(folder / METRICS), folder / "training.png")
    plot_evaluation(read_rows(folder / EVALUATIONS), folder / "evaluation.png")
