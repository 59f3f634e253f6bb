"""SIGTERM and Ctrl-C: one checkpoint at a step boundary, exit code 0, and nothing lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers import ROOT, command, result, run_here, run_process
from trainer.signals import StopFlag, Stopped

# No periodic checkpoint comes before the end: what is there was saved by the stop.
QUIET = ("checkpoint.every=100", "evaluate.every=2", "train.steps=4")
# What is written to the standard input is typed; a line of the terminal ends with CR LF.
IN_A_TERMINAL = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"


@pytest.fixture(scope="module")
def straight(tiny_base, tmp_path_factory) -> Path:
    """The folder of a run that no signal stopped."""
    folder = tmp_path_factory.mktemp("straight")
    run_here(tiny_base, folder, *QUIET)
    return folder


def checkpoints(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").glob("*"))


@pytest.mark.parametrize(
    ("phase", "steps_done", "number", "saved"),
    [
        ("start-up", 0, signal.SIGTERM, []),  # nothing is done yet
        ("evaluate", 0, signal.SIGTERM, []),
        ("rollout", 2, signal.SIGTERM, ["step-00000002"]),  # the step is begun again
        ("grading", 2, signal.SIGTERM, ["step-00000002"]),
        ("old_logprob", 1, signal.SIGINT, ["step-00000001"]),
        ("update", 2, signal.SIGTERM, ["step-00000003"]),  # weights are moving: it is finished
        ("backward", 2, signal.SIGINT, ["step-00000003"]),
        ("evaluate", 2, signal.SIGTERM, ["step-00000002"]),
        ("saving", 4, signal.SIGTERM, ["step-00000004"]),  # the run is complete
    ],
)
def test_t08_a_signal_saves_once_and_the_same_command_continues(
    phase, steps_done, number, saved, straight, tiny_base, tmp_path
):
    run = tmp_path / "run"
    arguments = command(tiny_base, run, *QUIET)
    stopped = run_process(
        tmp_path / "log", arguments, signal_at=(phase, steps_done, (int(number),))
    )
    assert stopped.code == 0, stopped.output
    assert f"{number.name}: saving at the next step boundary" in stopped.output
    if saved != ["step-00000004"]:
        assert f"stopped by {number.name}\nbehind step" in stopped.output
    assert f"continue: python -m trainer.run scale=embedded {arguments[0]}" in stopped.output
    assert checkpoints(run) == saved
    run_here(tiny_base, run, *QUIET)
    assert result(run) == result(straight)


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_t08_a_second_signal_ends_at_once(second, straight, tiny_base, tmp_path):
    run = tmp_path / "run"
    signals = (int(signal.SIGTERM), int(second))
    ended = run_process(
        tmp_path / "log", command(tiny_base, run, *QUIET), signal_at=("update", 2, signals)
    )
    assert ended.code == -second, ended.output
    words = "ended at once\nbehind step 2 of 4; saved: nothing yet\ncontinue: python -m trainer"
    assert words in ended.output
    assert checkpoints(run) == []
    run_here(tiny_base, run, *QUIET)
    assert result(run) == result(straight)


def test_t08_a_stop_in_the_middle_of_a_periodic_save_keeps_it(straight, tiny_base, tmp_path):
    run = tmp_path / "run"
    arguments = command(tiny_base, run, *QUIET, "checkpoint.every=2")
    stopped = run_process(tmp_path / "log", arguments, signal_at=("saving", 2, (signal.SIGTERM,)))
    assert stopped.code == 0, stopped.output
    assert f"saved: {run}/checkpoints/step-00000002\n" in stopped.output
    assert checkpoints(run) == ["step-00000002"]
    run_here(tiny_base, run, *QUIET)
    assert result(run) == result(straight)


def test_t08_a_stop_leaves_evaluation_at_once(tiny_base, tmp_path):
    """Not behind its 400 answers: whoever sends SIGTERM counts the seconds."""
    run = tmp_path / "run"
    arguments = command(tiny_base, run, *QUIET, "evaluate.problems=100", "evaluate.samples=2")
    stopped = run_process(tmp_path / "log", arguments, signal_at=("evaluate", 0, (signal.SIGTERM,)))
    assert stopped.code == 0, stopped.output
    assert not (run / "evaluations.jsonl").read_text()


def test_t08_ctrl_c_at_a_terminal(tiny_base, tmp_path):
    """The key itself, in a terminal of the run's own."""
    run = tmp_path / "run"
    job = [sys.executable, "-m", "trainer.run", *command(tiny_base, run, "train.steps=9999")]
    with subprocess.Popen(
        [sys.executable, "-c", IN_A_TERMINAL, *job],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        log = run / "metrics.jsonl"
        while process.poll() is None and not (log.exists() and log.read_text()):
            time.sleep(0.05)
        process.stdin.write("\x03")
        process.stdin.flush()
        said = process.stdout.read()
    assert process.returncode == 0, said
    assert "SIGINT: saving at the next step boundary; once more ends at once" in said
    assert f"stopped by SIGINT\nbehind step {int(checkpoints(run)[-1][5:])} of 9999" in said
    assert f"continue: python -m trainer.run scale=embedded {job[3]}" in said


def test_the_flag_waits_for_a_safe_point():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    stop = StopFlag()
    stop.poll()
    try:
        stop.install()
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped):
            stop.poll()
    finally:
        for number, handler in zip((signal.SIGTERM, signal.SIGINT), before, strict=True):
            signal.signal(number, handler)
