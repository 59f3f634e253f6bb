"""T1: SIGKILL at random moments of a real run; what is resumed ends as if nothing had happened."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest

from tests.helpers import command, result, run_process, start_process
from trainer.record import METRICS

STEPS = 6
QUIET = (f"train.steps={STEPS}", "checkpoint.every=1", "evaluate.every=0")


def rows_in(file: Path) -> int:
    return file.read_text().count("\n") if file.exists() else 0


@pytest.mark.parametrize("seed", [0, 1])
def test_t01_killed_at_random_moments_it_ends_the_same(seed, straight, tiny_base, tmp_path):
    moments = random.Random(seed)
    arguments = command(tiny_base, tmp_path / "run", *QUIET, "checkpoint.every=1")
    codes = []
    metrics = tmp_path / "run" / METRICS
    for attempt in range(3):  # at the start, about step 2, about step 4; a step takes some 0.1 s
        log = tmp_path / f"log-{attempt}"
        process = start_process(log, arguments)
        while process.is_alive() and not (log.exists() and "run folder" in log.read_text()):
            time.sleep(0.005)
        while process.is_alive() and attempt and rows_in(metrics) < 2 * attempt:
            time.sleep(0.005)
        process.join(moments.uniform(0.0, 0.1))
        process.kill()
        process.join()
        codes.append(process.exitcode)
    assert -signal.SIGKILL in codes, "every process had ended before its kill"
    done = run_process(tmp_path / "log", arguments)
    assert done.code == 0, done.output
    assert result(tmp_path / "run") == result(straight)
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == [f"step-{step:08d}" for step in (STEPS - 1, STEPS)]  # no leftovers
