"""A run that is stopped, killed or extended goes on as if nothing had happened, bit for bit."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import numpy
import pytest
import torch

from tests.helpers import command, result, run_here, run_process
from trainer import loop, resume, step
from trainer.checkpoint import CheckpointError, find_checkpoint
from trainer.config import ConfigError
from trainer.data.stream import Cursor, PromptStream
from trainer.record import EVALUATIONS, METRICS, SAMPLES, read_rows
from trainer.seeds import derive_seed

STEPS = 6  # of 4 prompts from epochs of 11 rows: two epochs end on the way
QUIET = (f"train.steps={STEPS}", "checkpoint.every=100", "evaluate.every=0")


@pytest.fixture(scope="module")
def straight(tiny_base, tmp_path_factory) -> Path:
    """The folder of a run of STEPS steps that nothing interrupted, in a process of its own."""
    folder = tmp_path_factory.mktemp("straight")
    done = run_process(folder / "log", command(tiny_base, folder / "run", *QUIET))
    assert done.code == 0, done.output
    return folder / "run"


def copy_run(source: Path, target: Path) -> Path:
    return Path(shutil.copytree(source, target))


def without_evaluations(folder: Path) -> dict:
    """A run extended twice was evaluated at each of its ends; all else must be the same."""
    return {key: value for key, value in result(folder).items() if key != EVALUATIONS}


def groups(folder: Path) -> list[int]:
    """Prompt group ids in the order they were asked, each once."""
    return list(dict.fromkeys(row["group"] for row in read_rows(folder / SAMPLES)))


# T5: N steps = k steps, save, new process, the rest


def test_t05_two_processes_do_what_one_does(straight, tiny_base, tmp_path):
    for steps in (2, STEPS):
        arguments = command(tiny_base, tmp_path / "run", *QUIET, f"train.steps={steps}")
        done = run_process(tmp_path / "log", arguments)
        assert done.code == 0, done.output
    assert without_evaluations(tmp_path / "run") == without_evaluations(straight)
    assert len(read_rows(tmp_path / "run" / METRICS)) == STEPS


def test_t05_split_masters_go_on_where_they_were(tiny_base, tmp_path):
    """In bfloat16, where a checkpoint has the joined weights (trainer/split_adamw.py)."""
    low = (*QUIET, "model.dtype=bfloat16", "train.self_check_every=0")
    run_here(tiny_base, tmp_path / "straight", *low)
    for steps in (3, STEPS):
        run_here(tiny_base, tmp_path / "run", *low, f"train.steps={steps}")
    assert without_evaluations(tmp_path / "run") == without_evaluations(tmp_path / "straight")


def test_t18_one_seed_one_result_another_seed_another(straight, tiny_base, tmp_path):
    run_here(tiny_base, tmp_path / "same", *QUIET)
    assert result(tmp_path / "same") == result(straight)
    run_here(tiny_base, tmp_path / "other", *QUIET, "seed=1")
    other = result(tmp_path / "other")
    assert other[METRICS] != result(straight)[METRICS]
    assert other["model"] != result(straight)["model"]


@pytest.mark.parametrize("lost", ["moments", "cursor", "weights", "seeds"])
def test_t05_whatever_is_lost_in_a_resume_shows(lost, straight, tiny_base, tmp_path, monkeypatch):
    """The negative control: each part of the state matters to the numbers compared above."""
    run_here(tiny_base, tmp_path, *QUIET, "train.steps=2")
    load_state = resume.load_state

    def load_without(trainer, checkpoint, state):
        start = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
        load_state(trainer, checkpoint, state)
        if lost == "moments":
            trainer.optimizer.adamw.state.clear()
        elif lost == "cursor":
            trainer.cursor = Cursor()
        elif lost == "weights":
            trainer.model.load_state_dict(start)
        else:
            monkeypatch.setattr(step, "derive_seed", lambda *path: derive_seed(*path, "other"))

    monkeypatch.setattr(resume, "load_state", load_without)
    run_here(tiny_base, tmp_path, *QUIET)
    found, expected = result(tmp_path), result(straight)
    assert found[METRICS][:2] == expected[METRICS][:2]
    assert found[METRICS][3:] != expected[METRICS][3:]
    assert found["model"] != expected["model"]


# T6: the prompts of a resumed run


def test_t06_prompts_are_those_of_the_uninterrupted_run(straight, tiny_base, tmp_path):
    """Stopped behind every step: within an epoch, behind its end, and with an update skipped."""
    expected = groups(straight)
    assert len(expected) == 4 * STEPS
    assert [sorted(expected[i : i + 11]) for i in (0, 11)] == [[*range(11)], [*range(11, 22)]]
    for steps in range(1, STEPS + 1):
        run_here(tiny_base, tmp_path, *QUIET, f"train.steps={steps}")
        assert groups(tmp_path) == expected[: 4 * steps]


def test_t06_a_skipped_update_loses_no_prompts(straight, tiny_base, tmp_path, monkeypatch):
    train_step = loop.train_step

    def with_broken_gradient(trainer):
        norm = trainer.model.model.norm.weight
        hook = norm.register_hook(lambda grad: grad * float("nan"))
        stats = train_step(trainer)
        hook.remove()
        return stats

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", with_broken_gradient)
        run_here(tiny_base, tmp_path, *QUIET, "train.steps=2")
    run_here(tiny_base, tmp_path, *QUIET)
    assert groups(tmp_path) == groups(straight)
    state = result(tmp_path)["optimizer"]
    assert (state["skipped"], state["updates"]) == (4, 2 * STEPS - 4)


# What may change under a checkpoint


def test_t07_a_changed_setting_is_refused_with_its_diff(straight, tiny_base, tmp_path):
    run = copy_run(straight, tmp_path / "run")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError) as refusal:
        run_here(tiny_base, run, *QUIET, "optim.lr=0.25", "budget.max=19")
    diff = str(refusal.value).splitlines()[1:]
    assert diff == ["  budget.max: 20 -> 19", "  optim.lr: 0.0005 -> 0.25"]
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_t07_a_named_change_is_allowed_and_said(straight, tiny_base, tmp_path, capsys):
    run = copy_run(straight, tmp_path / "run")
    allowed = ("train.steps=7", "optim.lr=0.25", "resume.allow_changes=[optim.lr]")
    with pytest.raises(ConfigError) as refusal:
        run_here(tiny_base, run, *QUIET, *allowed, "budget.max=19")
    assert str(refusal.value).splitlines()[1:] == ["  budget.max: 20 -> 19"]
    capsys.readouterr()
    assert run_here(tiny_base, run, *QUIET, *allowed).trainer.step == 7
    assert "allow_changes allows: optim.lr: 0.0005 -> 0.25" in capsys.readouterr().out
    run_here(tiny_base, run, *QUIET, "train.steps=8", "optim.lr=0.25")  # now it is the run's own


def test_t07_changed_problems_are_refused(tiny_base, tmp_path):
    """The same file name, one other answer: the settings alone cannot tell."""
    file = tmp_path / "sums.jsonl"
    rows = [{"problem": f"{i}+1=?", "answer": str(i + 1)} for i in range(6)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = (*QUIET, f"data.train={file}")
    run_here(tiny_base, tmp_path / "run", *settings, "train.steps=1")
    rows[4]["answer"] = "6"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ConfigError, match=r"data\.train \(contents\): .*'rows': 6.* -> .*sha256"):
        run_here(tiny_base, tmp_path / "run", *settings, "train.steps=2")
    allowed = (*settings, "train.steps=2", "resume.allow_changes=[data.train]")
    assert run_here(tiny_base, tmp_path / "run", *allowed).trainer.step == 2


def test_t07_settings_that_do_not_shape_the_result_are_free(straight, tiny_base, tmp_path):
    run = copy_run(straight, tmp_path / "run")
    free = ("train.steps=7", "checkpoint.every=1", "evaluate.budgets=[6]", "checkpoint.keep=1")
    assert run_here(tiny_base, run, *QUIET, *free).trainer.step == 7
    assert result(run)["step"] == 7


def test_fewer_steps_than_done_change_nothing(straight, tiny_base, tmp_path):
    run = copy_run(straight, tmp_path / "run")
    run_here(tiny_base, run, *QUIET, "train.steps=3")
    assert result(run) == result(straight)


def test_a_finished_run_is_not_trained_on(straight, tiny_base, tmp_path):
    run = copy_run(straight, tmp_path / "run")
    run_here(tiny_base, run, *QUIET)
    assert result(run) == result(straight)


# resume=never, resume.checkpoint=PATH


def test_never_refuses_a_folder_with_a_checkpoint(straight, tiny_base, tmp_path):
    run = copy_run(straight, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"^resume: never, but .*step-00000006 exists"):
        run_here(tiny_base, run, *QUIET, "resume=never")
    assert result(run) == result(straight)
    run_here(tiny_base, tmp_path / "fresh", *QUIET, "resume=never", "train.steps=1")
    assert result(tmp_path / "fresh")["step"] == 1


def test_a_named_checkpoint_is_continued_in_another_folder(straight, tiny_base, tmp_path):
    run_here(tiny_base, tmp_path / "first", *QUIET, "train.steps=2")
    named = find_checkpoint(tmp_path / "first" / "checkpoints")
    run_here(tiny_base, tmp_path / "second", *QUIET, f"resume.checkpoint={named}")
    found, expected = result(tmp_path / "second"), result(straight)
    assert found["model"] == expected["model"] and found["optim"] == expected["optim"]
    assert found[METRICS] == expected[METRICS][2:]


def test_t03_a_damaged_checkpoint_is_refused_and_named(straight, tiny_base, tmp_path):
    run = copy_run(straight, tmp_path / "run")
    state = run / "checkpoints" / "step-00000006" / "state.json"
    content = json.loads(state.read_text())
    state.write_text(json.dumps(content | {"step": 5}))
    with pytest.raises(CheckpointError, match=r"state\.json: expected .*sha256"):
        run_here(tiny_base, run, *QUIET)


def test_t03_an_older_one_is_taken_on_request_only(straight, tiny_base, tmp_path):
    """And then it is as if the run had been stopped there."""
    run = tmp_path / "run"
    run_here(tiny_base, run, *QUIET, "checkpoint.every=3")
    newest = run / "checkpoints" / "step-00000006"
    (newest / "optim.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"resume\.allow_older=true goes back"):
        run_here(tiny_base, run, *QUIET)
    job = run_here(tiny_base, run, *QUIET, "resume.allow_older=true")
    assert job.trainer.step == STEPS and newest.with_name("step-00000006.damaged").is_dir()
    assert without_evaluations(run) == without_evaluations(straight)


def test_t09_whatever_seeds_after_a_load_undoes_nothing(straight, tiny_base, tmp_path, monkeypatch):
    """No number of a run comes from a global generator, so none of them can be set back."""
    run_here(tiny_base, tmp_path, *QUIET, "train.steps=2")
    load_state, take = resume.load_state, PromptStream.take

    def seed_everything() -> None:
        random.seed(0)
        numpy.random.seed(0)
        torch.manual_seed(0)

    def load_and_seed(*parts):
        load_state(*parts)
        seed_everything()

    def seed_and_take(*parts):
        seed_everything()
        return take(*parts)

    monkeypatch.setattr(resume, "load_state", load_and_seed)
    monkeypatch.setattr(PromptStream, "take", seed_and_take)
    run_here(tiny_base, tmp_path, *QUIET)
    assert without_evaluations(tmp_path) == without_evaluations(straight)


def test_t09_a_run_draws_nothing_from_the_global_generators(tiny_base, tmp_path):
    run_here(tiny_base, tmp_path / "first", *QUIET, "train.steps=1")  # libraries loaded late draw
    before = random.getstate(), str(numpy.random.get_state()), torch.get_rng_state().tolist()
    run_here(tiny_base, tmp_path / "run", *QUIET, "train.steps=2")
    after = random.getstate(), str(numpy.random.get_state()), torch.get_rng_state().tolist()
    assert after == before


def test_logs_without_a_checkpoint_are_begun_anew(straight, tiny_base, tmp_path):
    run = copy_run(straight, tmp_path / "run")
    shutil.rmtree(run / "checkpoints")
    evaluations = run / EVALUATIONS  # also the one before training, with which a resume goes on
    evaluations.write_text(evaluations.read_text().replace('"used": [[', '"used": [[99, 99, 1], ['))
    assert read_rows(evaluations) != read_rows(straight / EVALUATIONS)
    run_here(tiny_base, run, *QUIET)
    assert result(run) == result(straight)
