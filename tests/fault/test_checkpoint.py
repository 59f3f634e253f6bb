"""Checkpoints under kills and leftovers (cases T1, T2), and which ones are deleted when."""

import errno
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from trainer import checkpoint
from trainer.checkpoint import (
    MANIFEST,
    CheckpointError,
    find_checkpoint,
    read_state,
    save_checkpoint,
)
from trainer.files import fingerprint, write_json_atomic

DEAD_PID = 9_999_999  # above the largest pid_max of Linux
FORK = multiprocessing.get_context("fork")  # the child needs no second import of torch


def writer(step: int, text: str = "") -> Callable[[Path], None]:
    """A `write` callback: two data files whose bytes depend on the step, and state.json."""

    def write(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(bytes([step % 251]) * 40_000)
        (folder / "optim.safetensors").write_bytes(bytes([step % 241]) * 80_000)
        write_json_atomic(folder / "state.json", {"step": step, "text": text})

    return write


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def save_steps(root: Path, *steps: int, keep: int = 9) -> None:
    for step in steps:
        save_checkpoint(root, step, writer(step), keep=keep)


def in_killed_child(
    target: Callable[..., None], *args: object, after_s: float | None = None
) -> int:
    """Run target(*args) in a fork, SIGKILL it after `after_s` if given; its exit code."""
    child = FORK.Process(target=target, args=args)
    child.start()
    if after_s is not None:
        time.sleep(after_s)
        child.kill()
    child.join(20)
    assert child.exitcode is not None, "the child hangs"
    return child.exitcode


@pytest.fixture
def live_pid() -> Iterator[int]:
    """Process id of somebody else who is alive."""
    child = FORK.Process(target=signal.pause)
    child.start()
    yield child.pid
    child.kill()
    child.join()


# T1: kills


def save_forever(root: Path, done) -> None:
    for step in count(done.value + 1):
        save_checkpoint(root, step, writer(step), keep=2)
        done.value = step


def test_t01_killed_at_random_moments(tmp_path):
    """What was saved before the kill is found, whole; at most the save in flight is lost."""
    rng = random.Random(0)
    done = FORK.RawValue("q", 1)
    save_steps(tmp_path, 1)
    leftovers = 0
    for _ in range(8):
        code = in_killed_child(save_forever, tmp_path, done, after_s=rng.uniform(0.03, 0.2))
        assert code == -signal.SIGKILL
        leftovers += any(".tmp-" in name for name in names(tmp_path))
        found = find_checkpoint(tmp_path)
        assert found is not None
        step = read_state(found)["step"]
        assert done.value <= step <= done.value + 1
        assert not any("." in name for name in names(tmp_path))
        done.value = step
    assert leftovers > 0, "no kill hit a save in progress: the test tests nothing"
    assert done.value > 8


def save_and_die(root: Path, step: int, call: int) -> None:
    """Save, but SIGKILL ourselves just before the `call`-th fsync, rename or removal."""
    calls = count(1)

    def or_die(function):
        def wrapped(*args, **kwargs):
            if next(calls) == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return wrapped

    for name in ("fsync", "rename", "replace", "unlink", "rmdir"):
        setattr(os, name, or_die(getattr(os, name)))
    save_checkpoint(root, step, writer(step, "new"), keep=2)


@pytest.mark.parametrize("step", [3, 2], ids=["next step", "same step again"])
def test_t01_killed_before_each_system_call(tmp_path, step):
    """Every point of the protocol, in order: first the old state, from one point on the new one."""
    outcomes = []
    for call in count(1):
        root = tmp_path / str(call)
        save_steps(root, 1, 2)
        code = in_killed_child(save_and_die, root, step, call)
        found = find_checkpoint(root)
        assert found is not None
        state = read_state(found)
        assert state in ({"step": 2, "text": ""}, {"step": step, "text": "new"})
        outcomes.append(state["text"] == "new")
        assert not any("." in name for name in names(root))
        save_steps(root, 4, keep=1)
        assert names(root) == ["step-00000004"]
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert len(outcomes) > 12
    assert outcomes == sorted(outcomes), "the new checkpoint came and went"
    assert not outcomes[0] and outcomes[-1]


def test_a_name_appears_only_after_its_bytes_are_on_disk(tmp_path, monkeypatch):
    """A kill cannot test a power cut; the order of fsync and rename can."""
    events = []
    fsync, rename = os.fsync, os.rename

    def log_fsync(fd):
        events.append(os.fstat(fd).st_ino)
        fsync(fd)

    def log_rename(source, target):
        events.append(Path(target).name)
        rename(source, target)

    monkeypatch.setattr(os, "fsync", log_fsync)
    monkeypatch.setattr(os, "rename", log_rename)
    folder = save_checkpoint(tmp_path, 1, writer(1), keep=1)
    published = events.index(folder.name)
    for path in [folder, *folder.iterdir()]:
        assert path.stat().st_ino in events[:published], f"{path.name} not synced before the rename"
    assert tmp_path.stat().st_ino in events[published:]


def test_leftovers_of_a_live_process_are_left_to_it(tmp_path, live_pid):
    """Reading the checkpoints of a running job must not delete what it is writing."""
    save_steps(tmp_path, 1)
    live, dead = (tmp_path / f"step-00000002.tmp-{pid}" for pid in (live_pid, DEAD_PID))
    live.mkdir()
    dead.mkdir()
    assert find_checkpoint(tmp_path) == tmp_path / "step-00000001"
    assert live.exists() and not dead.exists()


# T2: leftovers of the same step


@pytest.mark.parametrize("whose", ["own", "live", "dead"])
def test_t02_partial_folder_of_the_same_step(tmp_path, live_pid, whose):
    pid = {"own": os.getpid(), "live": live_pid, "dead": DEAD_PID}[whose]
    save_steps(tmp_path, 1)
    partial = tmp_path / f"step-00000002.tmp-{pid}"
    partial.mkdir()
    (partial / "rubbish").write_text("x")
    save_steps(tmp_path, 2)
    assert names(tmp_path) == ["step-00000001", "step-00000002"]
    assert find_checkpoint(tmp_path) == tmp_path / "step-00000002"


@pytest.mark.parametrize("state", ["no manifest", "damaged", "valid"])
def test_t02_final_folder_of_the_same_step_is_replaced(tmp_path, state):
    save_steps(tmp_path, 2)
    if state == "no manifest":
        (tmp_path / "step-00000002" / MANIFEST).unlink()
        assert find_checkpoint(tmp_path) is None
    elif state == "damaged":
        (tmp_path / "step-00000002" / "optim.safetensors").write_bytes(b"")
    folder = save_checkpoint(tmp_path, 2, writer(2, "again"), keep=1)
    assert names(tmp_path) == ["step-00000002"]
    assert find_checkpoint(tmp_path) == folder
    assert read_state(folder)["text"] == "again"


# Retention


def test_retention_keeps_the_newest(tmp_path):
    save_steps(tmp_path, 10, 20, 30, 40, keep=3)
    assert names(tmp_path) == ["step-00000020", "step-00000030", "step-00000040"]
    save_steps(tmp_path, 50, keep=1)
    assert names(tmp_path) == ["step-00000050"]


def test_retention_waits_for_verification(tmp_path, monkeypatch):
    """The disk gives back other bytes than were written: nothing old may go."""
    save_steps(tmp_path, 1, 2)

    def lying_disk(path: Path) -> dict[str, int | str]:
        return {"bytes": 0, "sha256": "?"} if sealed(path) else fingerprint(path)

    def sealed(path: Path) -> bool:
        return (path.parent / MANIFEST).exists()

    monkeypatch.setattr(checkpoint, "fingerprint", lying_disk)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: expected"):
        save_checkpoint(tmp_path, 3, writer(3), keep=1)
    assert names(tmp_path) == ["step-00000001", "step-00000002"]


def test_retention_counts_complete_folders_only_and_never_deletes_newer(tmp_path):
    save_steps(tmp_path, 1, 2, 3, 9)
    (tmp_path / "step-00000003" / MANIFEST).unlink()
    save_steps(tmp_path, 4, keep=2)
    assert names(tmp_path) == [f"step-0000000{step}" for step in (2, 3, 4, 9)]


def test_retention_that_cannot_delete_does_not_fail_the_save(tmp_path, monkeypatch, caplog):
    save_steps(tmp_path, 1)
    rename = os.rename

    def refuse(source, target):
        if Path(source).name == "step-00000001":
            raise PermissionError(errno.EACCES, "denied")
        rename(source, target)

    monkeypatch.setattr(os, "rename", refuse)
    save_steps(tmp_path, 2, keep=1)
    assert find_checkpoint(tmp_path) == tmp_path / "step-00000002"
    assert "could not delete" in caplog.text


@pytest.mark.parametrize(("step", "keep"), [(-1, 1), (1, 0)])
def test_bad_arguments(tmp_path, step, keep):
    with pytest.raises(ValueError, match="got"):
        save_checkpoint(tmp_path, step, writer(0), keep=keep)
