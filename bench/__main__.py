"""`python -m bench`: every op's bench in turn, a process each; all options go to each of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def op_files() -> list[str]:
    """Names of the modules here that are the bench of an op: those that define `BENCH`."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return [f.stem for f in files if "\nBENCH = " in f.read_text(encoding="utf-8")]


def run_all(arguments: list[str]) -> int:
    """The number of ops whose bench failed; the others are measured nevertheless."""
    commands = [[sys.executable, "-m", f"bench.{name}", *arguments] for name in op_files()]
    return sum(subprocess.run(command).returncode != 0 for command in commands)


if __name__ == "__main__":
    sys.exit(run_all(sys.argv[1:]))
