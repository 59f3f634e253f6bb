"""The logs of a run: one strict JSON row a step, whatever was killed when."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from trainer.config import ConfigError, LogSettings
from trainer.record import EVALUATIONS, METRICS, SAMPLES, Recorder, read_rows
from trainer.types import Advantages, Completion, Problem, Prompt, Rollout, Score, StepStats

QUIET = LogSettings(tensorboard=False, wandb=None)


def rollout(sample: int, text: str = "3+14=17\n</think>\\boxed{17}<|end|>") -> Rollout:
    problem = Problem("train-17", "3+14=?", ("17", "17.0"))
    prompt = Prompt(5, problem, "exact", 8, (1, 2, 3))
    return Rollout(
        prompt, sample, Completion([9, 8, 2], [-0.1] * 3, False), text, Score(1.0, "correct", "17")
    )


def stats(step: int, rollouts: int = 2, seconds: float = 0.5, **metrics: float) -> StepStats:
    terms = [torch.arange(rollouts, dtype=torch.float32) + i for i in range(4)]
    return StepStats(
        step=step,
        metrics={"reward/mean": step / 3, **metrics},
        seconds={"rollout": seconds, "speed/tokens": 10 / seconds},
        rollouts=[rollout(i) for i in range(rollouts)],
        advantages=Advantages(*terms),
    )


def evaluation(step: int, phase: str, accuracy: float = 0.5) -> dict:
    return {
        "step": step,
        "phase": phase,
        "overall": {"accuracy": accuracy},
        "budgets": [{"budget": 8, "accuracy": accuracy, "deviation": 0.1}],
        "used": [[8, 9, True]],
    }


def record_steps(run: Path, first: int, last: int, resume_step: int, seconds: float = 0.5) -> None:
    recorder = Recorder(run, QUIET, resume_step)
    for step in range(first, last + 1):
        recorder.train(stats(step, seconds=seconds))
        if step % 2 == 0:
            recorder.evaluation(evaluation(step, "during"))
    recorder.close()


def steps_of(path: Path) -> list[int]:
    return [row["step"] for row in read_rows(path)]


def refuse(name: str) -> NoReturn:
    raise AssertionError(f"{name} is not JSON")


def test_rows_hold_every_reward_term(tmp_path):
    recorder = Recorder(tmp_path, QUIET, 0)
    recorder.train(stats(1))
    recorder.close()
    first, second = read_rows(tmp_path / SAMPLES)
    assert second == {
        "step": 1, "group": 5, "problem": "train-17", "question": "3+14=?",
        "answers": ["17", "17.0"], "mode": "exact", "budget": 8, "sample": 1,
        "text": "3+14=17\n</think>\\boxed{17}<|end|>", "tokens": 3, "truncated": False,
        "reason": "correct", "extracted": "17",
        "correctness": 1.0, "length": 2.0, "reward": 3.0, "advantage": 4.0, "skipped": False,
    }  # fmt: skip
    assert (first["sample"], first["correctness"], first["advantage"]) == (0, 0.0, 3.0)


def test_rows_are_strict_json(tmp_path):
    recorder = Recorder(tmp_path, QUIET, 0)
    bad = stats(1, rollouts=1, nan=float("nan"), up=float("inf"), down=float("-inf"))
    bad.rollouts = [rollout(0, "line\nbreak \u2028 \x1b[31m lone \ud800 surrogate")]
    bad.advantages.reward[0] = float("nan")
    recorder.train(bad)
    recorder.evaluation(evaluation(1, "after", accuracy=float("nan")))
    recorder.close()
    rows = {}
    for name in (METRICS, SAMPLES, EVALUATIONS):
        (line,) = (tmp_path / name).read_text(encoding="ascii").splitlines()
        rows[name] = json.loads(line, parse_constant=refuse)
    assert {rows[METRICS]["metrics"][key] for key in ("nan", "up", "down")} == {None}
    assert rows[SAMPLES]["reward"] is None and rows[SAMPLES]["text"] == bad.rollouts[0].text
    assert rows[EVALUATIONS]["budgets"][0]["accuracy"] is None


def test_two_runs_of_one_seed_differ_in_timing_alone(tmp_path):
    rows = []
    for name, seconds in (("a", 0.5), ("b", 0.25)):
        run = tmp_path / name
        run.mkdir()
        record_steps(run, 1, 4, 0, seconds)
        rows.append(read_rows(run / METRICS))
    assert rows[0] != rows[1]
    for row in (*rows[0], *rows[1]):
        assert list(row) == ["step", "metrics", "timing"]
        assert set(row.pop("timing")) == {"rollout", "speed/tokens"}
    assert rows[0] == rows[1]
    for name in (SAMPLES, EVALUATIONS):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize("resume_step", range(-1, 6))
def test_resume_leaves_one_row_a_step(tmp_path, resume_step):
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    for run in (straight, resumed):
        run.mkdir()
        record_steps(run, 1, 5, 0)
    record_steps(resumed, max(resume_step, 0) + 1, 5, resume_step)
    assert steps_of(resumed / METRICS) == [1, 2, 3, 4, 5]
    assert steps_of(resumed / SAMPLES) == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert steps_of(resumed / EVALUATIONS) == [2, 4]
    for name in (METRICS, SAMPLES, EVALUATIONS):
        assert (resumed / name).read_bytes() == (straight / name).read_bytes()


@pytest.mark.parametrize(
    "tail", [b'{"step": 3, "metr', b"{", b"\0" * 40, b"\0\0\n\0\0\n", b"\xff\xfe\n", b"[1]\n"]
)
@pytest.mark.parametrize("resume_step", [1, 3])
def test_torn_lines_are_cut(tmp_path, tail, resume_step):
    record_steps(tmp_path, 1, 3, 0)
    whole = {name: (tmp_path / name).read_bytes() for name in (METRICS, SAMPLES, EVALUATIONS)}
    for name, text in whole.items():
        (tmp_path / name).write_bytes(text + tail)
    record_steps(tmp_path, resume_step + 1, 3, resume_step)
    assert {name: (tmp_path / name).read_bytes() for name in whole} == whole


def test_killed_at_any_byte_of_the_file(tmp_path):
    """Whatever prefix of metrics.jsonl reached the disk after the checkpoint of step 2."""
    record_steps(tmp_path, 1, 4, 0)
    path = tmp_path / METRICS
    whole = path.read_bytes()
    durable = b"".join(whole.splitlines(keepends=True)[:2])
    for size in range(len(durable), len(whole) + 1):
        path.write_bytes(whole[:size])
        Recorder(tmp_path, QUIET, 2).close()
        assert path.read_bytes() == durable


def test_torn_first_line(tmp_path):
    (tmp_path / METRICS).write_bytes(b'{"step": 1')
    Recorder(tmp_path, QUIET, 0).close()
    assert (tmp_path / METRICS).read_bytes() == b""


def test_a_row_without_its_newline_is_torn(tmp_path):
    """Kept, it would share a line with the next row."""
    record_steps(tmp_path, 1, 2, 0)
    path = tmp_path / METRICS
    path.write_bytes(path.read_bytes()[:-1])
    Recorder(tmp_path, QUIET, 2).close()
    assert steps_of(path) == [1] and path.read_bytes().endswith(b"\n")


def test_a_step_is_visible_to_readers_at_once(tmp_path):
    recorder = Recorder(tmp_path, QUIET, 0)
    recorder.train(stats(1))
    assert steps_of(tmp_path / METRICS) == [1] and steps_of(tmp_path / SAMPLES) == [1, 1]
    recorder.close()


def test_evaluations_survive_a_resume_and_are_not_doubled(tmp_path):
    recorder = Recorder(tmp_path, QUIET, 0)
    recorder.evaluation(evaluation(0, "before", accuracy=0.25))
    recorder.train(stats(1))
    recorder.evaluation(evaluation(1, "after"))
    recorder.close()

    recorder = Recorder(tmp_path, QUIET, 0)
    assert recorder.evaluated(0, "before") and not recorder.evaluated(1, "after")
    recorder.evaluation(evaluation(0, "before", accuracy=0.75))
    recorder.close()
    (row,) = read_rows(tmp_path / EVALUATIONS)
    assert row["overall"]["accuracy"] == 0.25 and recorder.evaluations == [row]


def test_damage_in_the_middle_is_named(tmp_path):
    record_steps(tmp_path, 1, 3, 0)
    lines = (tmp_path / METRICS).read_bytes().splitlines(keepends=True)
    (tmp_path / METRICS).write_bytes(lines[0] + b"{oops\n" + lines[2])
    with pytest.raises(ValueError, match=r"metrics\.jsonl:2: not a JSON row"):
        read_rows(tmp_path / METRICS)


def test_tensorboard_drops_what_a_resume_repeats(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = LogSettings(tensorboard=True, wandb=None)
    for resume_step, value in ((0, 1.0), (2, 2.0)):
        recorder = Recorder(tmp_path, log, resume_step)
        for step in range(resume_step + 1, 5):
            recorder.train(stats(step, value=value))
        recorder.evaluation(evaluation(4, "after"))
        recorder.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    points = [(event.step, event.value) for event in events.Scalars("value")]
    assert points == [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0)]
    tags = set(events.Tags()["scalars"])
    assert {"seconds/rollout", "speed/tokens", "evaluation/accuracy"} <= tags


def test_wandb_missing_names_setting_and_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"log\.wandb.*'lcpo'.*lcpo-trainer\[wandb\]"):
        Recorder(tmp_path, LogSettings(tensorboard=False, wandb="lcpo"), 0)
    assert list(tmp_path.iterdir()) == []


def test_wandb_gets_the_scalars(tmp_path, monkeypatch):
    logged: list[dict] = []
    run = types.SimpleNamespace(
        log=logged.append, define_metric=lambda *_, **__: None, finish=lambda: logged.append({})
    )
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=lambda **_: run))
    recorder = Recorder(tmp_path, LogSettings(tensorboard=False, wandb="lcpo"), 0)
    recorder.train(stats(3))
    recorder.evaluation(evaluation(3, "after"))
    recorder.close()
    step, evaluated, finished = logged
    assert step == {"step": 3, "reward/mean": 1.0, "seconds/rollout": 0.5, "speed/tokens": 20.0}
    assert evaluated["evaluation/deviation@8"] == 0.1 and finished == {}
