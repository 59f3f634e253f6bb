"""T1: SIGKILL at random moments of a real run; what is resumed ends as if nothing had happened.

Three kills in every test run, 50 in `make test-faults`; `make test-faults KILLS=500` for more.
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.helpers import command, result, run_here, start_process
from trainer.record import METRICS

STEPS = 12
EVERY = 3  # steps a checkpoint
QUIET = (f"train.steps={STEPS}", f"checkpoint.every={EVERY}", "evaluate.every=0")
KILLS = int(os.environ.get("LCPO_KILLS", 50))
WINDOW_S = 0.8  # a few steps
AT_START = 0.1  # share of the kills that do not wait until the model is loaded


@pytest.fixture(scope="module")
def straight(tiny_base, tmp_path_factory) -> Path:
    """The folder of a run that nothing killed."""
    folder = tmp_path_factory.mktemp("straight")
    run_here(tiny_base, folder, *QUIET)
    return folder


def run_with_kills(log: Path, arguments: list[str], moments: random.Random, most: int) -> int:
    """Start the command until it ends by itself, killing it up to `most` times; how many it was."""
    killed = 0
    while True:
        log.unlink(missing_ok=True)
        process = start_process(log, arguments)
        if killed < most:
            if moments.random() > AT_START:
                while process.is_alive() and not (log.exists() and "run folder" in log.read_text()):
                    time.sleep(0.005)
            process.join(moments.uniform(0, WINDOW_S))
            process.kill()
        process.join(60)
        if process.exitcode == 0:
            return killed
        assert process.exitcode == -signal.SIGKILL, log.read_text()
        killed += 1


@pytest.mark.parametrize(
    "kills", [3, pytest.param(KILLS, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_t01_killed_at_random_moments_it_ends_the_same(kills, straight, tiny_base, tmp_path):
    """Weights, moments, cursor, every row of every log: a run takes as many kills as it lasts."""
    moments = random.Random(kills)
    done, runs, expected = 0, 0, result(straight)
    while done < kills:
        run = tmp_path / f"run-{runs}"
        done += run_with_kills(
            tmp_path / "log", command(tiny_base, run, *QUIET), moments, kills - done
        )
        assert result(run) == expected
        names = sorted(path.name for path in (run / "checkpoints").iterdir())
        assert names == [f"step-{step:08d}" for step in (STEPS - EVERY, STEPS)]  # no leftovers
        runs += 1
    print(f"{done} kills in {runs} runs of {STEPS} steps")


def test_t01_killed_behind_a_checkpoint_it_ends_the_same(straight, tiny_base, tmp_path):
    """The log then has a row more than the checkpoint, which the resumed run writes again."""
    run, arguments = tmp_path / "run", command(tiny_base, tmp_path / "run", *QUIET)
    process = start_process(tmp_path / "log", arguments)
    metrics = run / METRICS
    while not metrics.exists() or metrics.read_bytes().count(b"\n") <= EVERY:
        assert process.is_alive(), (tmp_path / "log").read_text()
        time.sleep(0.001)
    process.kill()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert run_with_kills(tmp_path / "log", arguments, random.Random(0), 0) == 0
    assert result(run) == result(straight)
