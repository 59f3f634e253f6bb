"""The soak test itself: a short one passes, and a leak would be seen."""

from __future__ import annotations

import shlex
import subprocess
import sys

import pytest
from matplotlib.image import imread

from tests.helpers import ROOT

LEAKING = """
import pathlib, sys, types
from bench import soak
thing = types.SimpleNamespace
leak, folder = int(sys.argv[1]), pathlib.Path(sys.argv[2])
seen = soak.Soak()
seen.resident = [100.0 + step for step in range(100)]
names = ("threads", "processes", "open files", "pages held")
seen.held = [{n: step * (n == names[leak]) for n in names} for step in range(100)]
seen.faults["disk full"] = 2
(folder / soak.METRICS).touch()
(folder / "checkpoints" / "step-00000099.tmp-7").mkdir(parents=True)
pool = thing(replaced=0, submit=lambda *_: None, collect=lambda: {0: "crashed"})
trainer = thing(optimizer=thing(skipped=0), grader=thing(pool=pool))
parts = {"train": thing(steps=100), "rollout": thing(prompts=1, samples=1)}
config = thing(**parts, checkpoint=thing(keep=2))
run = thing(folder=folder, checkpoints=folder / "checkpoints", trainer=trainer, config=config)
log = "checkpoint failed (1 in a row)"
print([what for what, _, ok in soak.checks(seen, run, log, soak.MAX_GROWTH) if not ok])
"""
# In namespaces of its own, which not every container may make; the soak raises the error then.
OWN_MOUNTS = ["unshare", "--user", "--map-root-user", "--mount"]
ON_A_SMALL_DISK = "mount -t tmpfs -o size=64m none {folder} && {command} --folder {folder}"


def python(*arguments: str) -> str:
    """What a python process says; it must end well."""
    return said([sys.executable, *arguments])


def said(command: list[str]) -> str:
    """What a command says; it must end well."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def may_mount() -> bool:
    """Whether this machine lets us have a small disk."""
    command = [*OWN_MOUNTS, "mount", "-t", "tmpfs", "none", "/mnt"]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def test_a_short_one(tmp_path):
    """With all faults often; resident memory of so few steps says nothing."""
    settings = ["checkpoint.every=2", "log.tensorboard=false"]
    options = ["--steps", "20", "--often", "20", "--growth", "1", "--out", str(tmp_path)]
    command = [sys.executable, "-m", "bench.soak", *settings, *options]
    small = may_mount()
    if small:
        (tmp_path / "disk").mkdir()
        line = ON_A_SMALL_DISK.format(folder=tmp_path / "disk", command=shlex.join(command))
        command = [*OWN_MOUNTS, "sh", "-c", line]
    text = said(command)
    for fault in ("NaN gradient", "out of memory", "disk full", "killed grader"):
        assert f"| {fault} | " in text
    assert "| preempted samples | " in text
    assert ("of a small tmpfs" in text) == small
    assert "| 20 rows |" in text and "| NO |" not in text
    assert (tmp_path / "soak.md").read_text() in text
    assert imread(tmp_path / "soak.png").shape[1] > 600


@pytest.mark.parametrize(
    ("leak", "name"), [(0, "threads"), (1, "processes"), (2, "open files"), (3, "pages held")]
)
def test_a_leak_would_be_seen(leak, name, tmp_path):
    found = python("-c", LEAKING, str(leak), str(tmp_path))
    assert "'resident memory grows" in found and "'metrics.jsonl has exactly" in found
    assert "'every disk full, and nothing else, failed a save'" in found
    assert "'graders answer at the end'" in found and "'no leftovers of a save'" in found
    assert f"'no more {name} at the end'" in found and found.count("no more") == 1
