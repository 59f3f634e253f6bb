"""Contenders that run in a process, and an environment, of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch


class Process:
    """One side, that takes a step for each line it is sent and answers in lines of JSON.

    `command` with the job behind it starts it; it says {"ready": 1} when it has loaded. Its
    environment is this one's and `settings`.
    """

    def __init__(
        self, command: list[str], job: dict[str, Any], settings: Mapping[str, str] | None = None
    ) -> None:
        self._process = subprocess.Popen(
            [*command, json.dumps(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | dict(settings or {}),
        )
        self._answer()

    def step(self) -> float:
        """Seconds of one step."""
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._answer()["seconds"]

    def end(self) -> float:
        """Ends it; its peak memory in MiB."""
        self._process.stdin.close()
        found = self._answer()["peak_mib"]
        self._process.wait()
        return found

    def _answer(self) -> dict[str, float]:
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args} ended with {self._process.wait()}")
        return json.loads(line)


def environment_python(
    folder: Path, packages: Sequence[str], without: Sequence[str] = (), torch_too: bool = True
) -> str:
    """The Python of the environment in `folder`, which is made when it is not there.

    `without`: packages to take out again. `torch_too` installs our version of torch.
    """
    python = folder / "bin" / "python"
    ready = folder / "ready"
    if not ready.exists():
        print(f"installing {', '.join(packages)} into {folder}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        pip = [python, "-m", "pip"]
        pinned = [f"torch=={torch.__version__}"] if torch_too else []
        subprocess.run([*pip, "install", "-q", *pinned, *packages], check=True)
        if without:
            subprocess.run([*pip, "uninstall", "-q", "-y", *without], check=True)
        ready.touch()
    return str(python)
