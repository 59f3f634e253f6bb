"""What a run leaves to read: metrics.jsonl, evaluations.jsonl, samples.jsonl, TensorBoard, wandb.

The three files are strict JSON lines in step order. Each row is appended whole and flushed; `sync`
makes all of them durable and is called before a checkpoint is committed. So, whatever was killed
when, a resume only has to cut the files back to the checkpoint's step: one row a step, always.
"""

from __future__ import annotations

import json
import math
import mmap
import os
from typing import TYPE_CHECKING, Any

from trainer.config import ConfigError
from trainer.files import sync_path
from trainer.json_text import parse_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from trainer.config import LogSettings
    from trainer.types import StepStats

METRICS, EVALUATIONS, SAMPLES = "metrics.jsonl", "evaluations.jsonl", "samples.jsonl"


class RowFile:
    """A JSON-lines file whose rows hold a non-decreasing "step"."""

    def __init__(self, path: Path, last_step: int) -> None:
        """Open `path` to append after the rows of `last_step`; all that follows them is cut off."""
        path.touch()
        _cut(path, last_step)
        self._path, self._file = path, path.open("ab", buffering=0)

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Hand the rows to the system in one piece. Raises OSError naming the file."""
        # ASCII escapes keep one row on one line for any reader, and lone surrogates writable.
        text = "".join(json.dumps(_strict(row), allow_nan=False) + "\n" for row in rows)
        left = memoryview(text.encode("ascii"))
        try:
            while left:  # a disk that fills up takes the first part
                left = left[self._file.write(left) :]
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from error

    def sync(self) -> None:
        """Make the rows survive a power cut. Raises OSError."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; without `sync` before, rows may still be lost to a power cut."""
        self._file.close()


class Recorder:
    """Writes every step and evaluation of a run into its folder.

    `evaluations` holds the rows of evaluations.jsonl, those of before a resume included.
    """

    def __init__(self, run_dir: Path, log: LogSettings, resume_step: int) -> None:
        """Continue the logs of `run_dir` (which exists) after `resume_step`; -1 starts them anew.

        With 0 the evaluation before training is kept.
        Raises ConfigError when `log.wandb` names a project and wandb is not installed, OSError.
        """
        self._wandb = _start_wandb(log.wandb, run_dir, resume_step) if log.wandb else None
        self._board = _start_tensorboard(run_dir, resume_step) if log.tensorboard else None
        self._metrics = RowFile(run_dir / METRICS, resume_step)
        self._samples = RowFile(run_dir / SAMPLES, resume_step)
        self._evaluations = RowFile(run_dir / EVALUATIONS, resume_step)
        self.evaluations = read_rows(run_dir / EVALUATIONS)
        self._last_step = resume_step
        sync_path(run_dir)  # the names of new files

    def train(self, stats: StepStats) -> None:
        """Record one training step, with its rollouts.

        A metrics row is {"step", "metrics", "timing"}. Whatever depends on the machine's speed or
        memory is in "timing" alone, so that two runs of one seed agree in all the rest.
        """
        assert stats.step > self._last_step, f"step {stats.step} after step {self._last_step}"
        self._last_step = stats.step
        row = {"step": stats.step, "metrics": stats.metrics, "timing": stats.seconds}
        self._metrics.append([row])
        self._samples.append(_sample_rows(stats))
        timing = {k if "/" in k else f"seconds/{k}": v for k, v in stats.seconds.items()}
        self._send(stats.step, stats.metrics | timing)

    def evaluation(self, row: dict[str, Any]) -> None:
        """Record an evaluation: {"step", "phase", "overall", "budgets", "used"}.

        A run that was killed between an evaluation and its next step evaluates again when resumed;
        the row that is already there stays. Ask `evaluated` first to save the work.
        """
        if self.evaluated(row["step"], row["phase"]):
            return
        self.evaluations.append(_strict(row))  # as a resumed run reads it
        self._evaluations.append([row])
        scalars = {f"evaluation/{key}": value for key, value in row["overall"].items()}
        for cell in row["budgets"]:
            scalars |= {
                f"evaluation/{key}@{cell['budget']}": value
                for key, value in cell.items()
                if key != "budget"
            }
        self._send(row["step"], scalars)

    def evaluated(self, step: int, phase: str) -> bool:
        """Is the evaluation of this step and phase ("before", "during", "after") recorded?"""
        return any(row["step"] == step and row["phase"] == phase for row in self.evaluations)

    def sync(self) -> None:
        """Make everything recorded so far durable: call it before a checkpoint is committed."""
        for file in (self._metrics, self._samples, self._evaluations):
            file.sync()
        if self._board is not None:
            self._board.flush()

    def close(self) -> None:
        """Sync and close all logs."""
        self.sync()
        for file in (self._metrics, self._samples, self._evaluations):
            file.close()
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()

    def _send(self, step: int, scalars: dict[str, float | None]) -> None:
        """Send scalars to TensorBoard and wandb, but for those that are not known (None)."""
        known = {name: value for name, value in scalars.items() if value is not None}
        if self._board is not None:
            for name, value in known.items():
                self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log({"step": step, **known})


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows of a file that RowFile wrote; a torn last line is left out.

    Raises ValueError naming the file and the line of a row that is not JSON, OSError.
    """
    return list(iter_rows(path))


def iter_rows(path: Path, key: str = "step", kind: type = int) -> Iterator[dict[str, Any]]:
    """The whole lines of a file one by one as `parse_row` reads them, for files of gigabytes."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.endswith(b"\n"):  # else being written, or torn by a kill
                yield parse_row(line, f"{path}:{number}", key, kind)


def parse_row(line: bytes, where: str, key: str = "step", kind: type = int) -> dict[str, Any]:
    """One line as a row whose `key` is a `kind`; ValueError starting with `where` if it is none."""
    try:
        row = parse_json(line)
    except ValueError as error:  # not JSON, or not UTF-8
        raise ValueError(f"{where}: not a JSON row ({error})") from None
    if not isinstance(row, dict) or not isinstance(row.get(key), kind):
        raise ValueError(f'{where}: not a row with a "{key}"')
    return row


def _cut(path: Path, last_step: int) -> None:
    """Cut off what follows the last whole row with step <= last_step, and make that durable.

    Read from the end, as samples.jsonl grows to gigabytes. One truncation, not a rewritten copy: it
    is as atomic as a rename, and if it is lost to a crash the next resume does it again.
    """
    if path.stat().st_size == 0:  # cannot be mapped
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        end = text.rfind(b"\n") + 1
        while end > 0:
            start = text.rfind(b"\n", 0, end - 1) + 1
            if _step_of(text[start:end]) <= last_step:
                break
            end = start
    with path.open("r+b") as file:
        file.truncate(end)
        os.fsync(file.fileno())


def _step_of(line: bytes) -> float:
    """The step of a row, infinite when it is not one: a power cut can leave lines of zero bytes."""
    try:
        return parse_row(line, "")["step"]
    except ValueError:
        return math.inf


def _strict(value: Any) -> Any:
    """`value` with null in place of NaN and infinities, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return value


def _sample_rows(stats: StepStats) -> list[dict[str, Any]]:
    """One row a rollout, with every term of its reward."""
    if not stats.rollouts:
        return []
    terms = stats.advantages
    assert terms is not None, f"step {stats.step} has rollouts and no advantages"
    columns = zip(
        stats.rollouts,
        terms.correctness.tolist(),
        terms.length.tolist(),
        terms.reward.tolist(),
        terms.advantage.tolist(),
        strict=True,
    )
    return [
        {
            "step": stats.step,
            "group": rollout.prompt.group,
            "problem": rollout.prompt.problem.id,
            "question": rollout.prompt.problem.question,
            "answers": rollout.prompt.problem.answers,
            "mode": rollout.prompt.mode,
            "budget": rollout.prompt.budget,
            "sample": rollout.sample,
            "text": rollout.text,
            "tokens": len(rollout.completion.token_ids),
            "truncated": rollout.completion.truncated,
            "reason": rollout.score.reason,
            "extracted": rollout.score.extracted,
            "correctness": correctness,
            "length": length,
            "reward": reward,
            "advantage": advantage,
            "skipped": index in stats.skipped,
        }
        for index, (rollout, correctness, length, reward, advantage) in enumerate(columns)
    ]


def _start_tensorboard(run_dir: Path, resume_step: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter  # slow to import, and may be off

    return SummaryWriter(str(run_dir / "tensorboard"), purge_step=resume_step + 1)


def _start_wandb(project: str, run_dir: Path, resume_step: int) -> Any:
    """A wandb run; a resume starts another one of the same group, as wandb takes no step twice."""
    try:
        import wandb
    except ImportError:
        raise ConfigError(
            f"log.wandb: {project!r} is set and the wandb package is not installed; "
            "pip install 'lcpo-trainer[wandb]', or leave log.wandb unset"
        ) from None
    run = wandb.init(
        project=project,
        group=run_dir.name,
        name=f"{run_dir.name}-from-{max(resume_step, 0)}",
        dir=str(run_dir),
    )
    run.define_metric("*", step_metric="step")
    return run
