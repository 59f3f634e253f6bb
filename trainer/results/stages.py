"""Runs a stage once: what is complete is skipped, what was interrupted goes on."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

from trainer.config import ConfigError
from trainer.evaluate.evaluation import EVALUATION, run_evaluation
from trainer.evaluate.settings import read_settings
from trainer.files import read_json, write_json_atomic
from trainer.results.plan import Stage

MARK = "stage.json"  # written last: arguments and seconds of a complete stage


def run_stage(stage: Stage) -> float:
    """Make sure that `stage` is complete; the seconds it took, now or when it was run.

    Raises ConfigError when its training fails, or when it was complete with other arguments.
    """
    mark = stage.folder / MARK
    if mark.is_file():
        done = read_json(mark)
        if done["arguments"] != list(stage.arguments):
            raise ConfigError(
                f"{stage.folder} was made by other settings; choose another --root, or remove it\n"
                f"  then: {' '.join(done['arguments'])}\n  now:  {' '.join(stage.arguments)}"
            )
        return done["seconds"]
    print(f"\n== {stage.folder}\n{stage.command}", flush=True)
    start = time.monotonic()
    if stage.kind == "train":
        command = [sys.executable, "-m", "trainer.run", *stage.arguments]
        code = subprocess.run(command, check=False).returncode
        if code:
            raise ConfigError(f"{stage.folder}: trainer.run ended with {code}; see above")
    else:
        run_evaluation(read_settings(stage.arguments))
    seconds = time.monotonic() - start
    write_json_atomic(mark, {"arguments": list(stage.arguments), "seconds": seconds})
    return seconds


def is_complete(stage: Stage) -> bool:
    """Whether an evaluation stage has been run to its end."""
    return (stage.folder / MARK).is_file()


def evaluation_of(stage: Stage) -> dict[str, Any]:
    """The evaluation that a complete stage left. OSError, ValueError."""
    return read_json(stage.folder / EVALUATION)
