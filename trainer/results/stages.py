"""Runs stages once each, several at a time: what is complete is skipped, the rest goes on."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from trainer.config import ConfigError
from trainer.evaluate.evaluation import EVALUATION
from trainer.files import read_json, write_json_atomic
from trainer.results.display import REFRESH, Display
from trainer.results.plan import Stage

MARK = "stage.json"  # written last: arguments and seconds of a complete stage


def run_chains(chains: Sequence[Sequence[Stage]], jobs: int) -> float:
    """Make sure that all stages are complete, those of a chain one after the other.

    At most `jobs` run at once, each as a process of one thread. Returns the sum of their seconds,
    now or when they were run. Raises ConfigError when a stage fails or was complete with other
    arguments; this and Ctrl-C end the others at their next safe point.
    """
    running, stages = Running(), [stage for chain in chains for stage in chain]
    with Display() as display, ThreadPoolExecutor(jobs) as pool:
        tasks = [pool.submit(_run_chain, chain, running) for chain in chains]
        try:
            while wait(tasks, REFRESH).not_done and running.error is None:
                display.show(running.logs(), sum(map(is_complete, stages)), len(stages))
        except KeyboardInterrupt as error:
            running.stop(error)
    if running.error:
        raise running.error
    return sum(task.result() for task in tasks)


class Running:
    """The processes of the stages that run now, by log, until the first error ends them all."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self._lock = threading.Lock()
        self._of: dict[Path, subprocess.Popen[bytes]] = {}

    def logs(self) -> list[Path]:
        """Of the stages that run now."""
        with self._lock:
            return list(self._of)

    def run(self, stage: Stage) -> int:
        """The exit code of the stage's process, whose output goes to its log."""
        command = [sys.executable, "-m", stage.module, *stage.arguments]
        with self._lock:
            if self.error:
                raise self.error
            with stage.log.open("ab") as log:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, "OMP_NUM_THREADS": "1"},
                    # Out of the reach of Ctrl-C: stop() sends one signal, and a second one would
                    # end a training before it has saved.
                    start_new_session=True,
                )
            self._of[stage.log] = process
        code = process.wait()
        with self._lock:
            del self._of[stage.log]
        return code

    def stop(self, error: BaseException) -> None:
        """No other stage begins; a training saves and ends, an evaluation keeps its samples."""
        with self._lock:
            if self.error is None:
                self.error = error
                for process in self._of.values():
                    process.terminate()


def _run_chain(chain: Sequence[Stage], running: Running) -> float:
    try:
        return sum(_run_stage(stage, running) for stage in chain)
    except (OSError, ValueError) as error:
        running.stop(error)
        raise


def _run_stage(stage: Stage, running: Running) -> float:
    mark = stage.folder / MARK
    if mark.is_file():
        done = read_json(mark)
        if done["arguments"] != list(stage.arguments):
            raise ConfigError(
                f"{stage.folder} was made by other settings; choose another --root, or remove it\n"
                f"  then: {' '.join(done['arguments'])}\n  now:  {' '.join(stage.arguments)}"
            )
        return done["seconds"]
    stage.log.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    code = running.run(stage)
    if code:
        said = "\n".join(stage.log.read_text(errors="replace").splitlines()[-5:])
        raise ConfigError(f"{said}\n{stage.module} ended with {code}; all it said: {stage.log}")
    seconds = time.monotonic() - start
    write_json_atomic(mark, {"arguments": list(stage.arguments), "seconds": seconds})
    return seconds


def is_complete(stage: Stage) -> bool:
    """Whether a stage has been run to its end."""
    return (stage.folder / MARK).is_file()


def evaluation_of(stage: Stage) -> dict[str, Any]:
    """The evaluation that a complete stage left. OSError, ValueError."""
    return read_json(stage.folder / EVALUATION)
