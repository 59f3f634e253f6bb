"""The last lines of a run: what happened, what is saved, and a command that does continue."""

from __future__ import annotations

import resource
import shlex
from pathlib import Path

import pytest

from tests.helpers import command, make_run, result, run_here, run_process
from trainer import closing, loop, resume
from trainer.checkpoint import CheckpointError

QUIET = ("train.steps=3", "checkpoint.every=1", "evaluate.every=0")
PROGRAM = ["python", "-m", "trainer.run"]


def continuing(output: str) -> list[str]:
    """The arguments of the command that the output says continues the run."""
    (line,) = [line for line in output.splitlines() if line.startswith("continue: ")]
    words = shlex.split(line.removeprefix("continue: "))
    assert words[:3] == PROGRAM
    return words[3:]


@pytest.mark.parametrize("changes", [(), ("resume=never",)], ids=["auto", "never"])
def test_the_command_of_a_stopped_run_continues_it(changes, tiny_base, tmp_path):
    """Also where the first command would be refused: `resume=never` was for the beginning."""
    run_here(tiny_base, tmp_path / "straight", *QUIET)
    arguments = command(tiny_base, tmp_path / "a run", *QUIET, *changes)
    stopped = run_process(tmp_path / "log", arguments, signal_at=("rollout", 1, (15,)))
    assert stopped.code == 0, stopped.output
    again = continuing(stopped.output)
    assert not any(word.startswith("resume") for word in again)
    assert run_process(tmp_path / "log", again).code == 0
    assert result(tmp_path / "a run") == result(tmp_path / "straight")


def test_the_command_of_a_complete_run_goes_further(tiny_base, tmp_path):
    run = tmp_path / "run"
    done = run_process(tmp_path / "log", command(tiny_base, run, *QUIET, "train.steps=1"))
    assert done.code == 0, done.output
    assert done.output.splitlines()[-3] == f"saved: {run}/checkpoints/step-00000001"
    assert done.output.splitlines()[-1].startswith(f"done: {run}/evaluation.png")
    further = run_process(tmp_path / "log", continuing(done.output))
    assert "step 2/2" in further.output and further.code == 0


@pytest.mark.parametrize(
    ("error", "trace"),
    [(RuntimeError("boom"), True), (FloatingPointError("boom"), False)],
    ids=repr,
)
def test_an_error_ends_with_what_is_saved(error, trace, tiny_base, tmp_path, capfd):
    """An error of ours shows where it came from, above the last lines; one of the user does not."""
    job = run_job(tiny_base, tmp_path / "run", error, at_step=2)
    said = capfd.readouterr().err
    assert job.code == 1
    assert ("Traceback" in said) == trace
    assert said.splitlines()[-3:-1] == [
        f"failed, {type(error).__name__}: boom",
        f"behind step 2 of 3; saved: {tmp_path}/run/checkpoints/step-00000002",
    ]


def test_steps_behind_the_checkpoint_are_counted(tiny_base, tmp_path, capfd):
    run_job(tiny_base, tmp_path / "run", RuntimeError(), at_step=2, every=100)
    assert "behind step 2 of 3; saved: nothing yet" in capfd.readouterr().err


def run_job(
    base: Path, folder: Path, error: Exception, at_step: int, every: int = 1
) -> closing.Closing:
    """A run under Closing that fails with `error` in the step behind `at_step`."""
    train_step = loop.train_step

    def failing(trainer):
        if trainer.step == at_step:
            raise error
        return train_step(trainer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train_step", failing)
        job = make_run(base, folder, *QUIET, f"checkpoint.every={every}")
        with closing.Closing(["+experiment=l1_exact"]) as end:
            end.begin(job)
            loop.run_loop(job)
    return end


def test_a_refused_resume_says_nothing_of_continuing(tiny_base, tmp_path, capfd):
    run_here(tiny_base, tmp_path / "run", *QUIET)
    job = make_run(tiny_base, tmp_path / "run", *QUIET, "resume=never")
    with closing.Closing([]) as end:
        end.begin(job)
        loop.run_loop(job)
    assert end.code == 1
    said = capfd.readouterr().err
    assert said.startswith("ConfigError: resume: never") and "continue" not in said


@pytest.mark.parametrize("fails_at", [2, 3])
def test_t04_failed_saves(fails_at, tiny_base, tmp_path, monkeypatch, capfd):
    """One in the middle harms nothing; without the last one the run has not ended well."""
    job = make_run(tiny_base, tmp_path / "run", *QUIET)

    def full(trainer, folder, *state):
        if trainer.step == fails_at:
            raise OSError(28, "No space left on device")
        resume.write_state(trainer, folder, *state)

    monkeypatch.setattr(loop, "write_state", full)
    monkeypatch.setattr(loop, "draw", lambda folder: None)
    with closing.Closing([]) as end:
        end.begin(job)
        loop.run_loop(job)
    output = capfd.readouterr()
    assert "checkpoint failed (1 in a row): could not save step" in output.out
    assert end.code == (fails_at == 3)
    if end.code:
        assert "saved: " + str(tmp_path / "run/checkpoints/step-00000002, 1 step(s)") in output.err


def test_t04_a_full_disk_under_the_logs(tiny_base, tmp_path, monkeypatch, capfd):
    """A write that the system takes in part, by a file size limit: the run ends, and goes on."""
    changes = ("train.steps=5", "checkpoint.every=2", "evaluate.every=0")
    run, straight = tmp_path / "run", tmp_path / "straight"
    run_here(tiny_base, straight, *changes)
    job = make_run(tiny_base, run, *changes)
    train_step, limits = loop.train_step, resource.getrlimit(resource.RLIMIT_FSIZE)

    def full(trainer):
        stats = train_step(trainer)
        if trainer.step == 3:
            room = (run / "samples.jsonl").stat().st_size + 100
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
        return stats

    monkeypatch.setattr(loop, "train_step", full)
    try:
        with closing.Closing([]) as end:
            end.begin(job)
            loop.run_loop(job)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert end.code == 1
    assert capfd.readouterr().err.splitlines()[-3:-1] == [
        f"failed, OSError: [Errno 27] File too large: '{run}/samples.jsonl'",
        f"behind step 3 of 5; saved: {run}/checkpoints/step-00000002, 1 step(s) before that",
    ]
    assert not (run / "samples.jsonl").read_text().endswith("\n")
    monkeypatch.undo()
    run_here(tiny_base, run, *changes)
    assert result(run) == result(straight)


def test_t04_so_many_failed_saves_in_a_row_stop_the_run(tiny_base, tmp_path, monkeypatch):
    job = make_run(tiny_base, tmp_path / "run", *QUIET, "checkpoint.max_failures=2")

    def full(trainer, folder, *state):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(loop, "write_state", full)
    with pytest.raises(CheckpointError, match="No space left"):
        loop.run_loop(job)
    assert job.trainer.step == 2
