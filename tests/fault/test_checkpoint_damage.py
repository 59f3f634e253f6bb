"""Damaged checkpoints and full disks (cases T3, T4)."""

import errno
import json
import logging
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from trainer import checkpoint
from trainer.checkpoint import (
    MANIFEST,
    CheckpointError,
    find_checkpoint,
    save_checkpoint,
    verify_checkpoint,
)
from trainer.files import fingerprint, save_tensors


def writer(step: int) -> Callable[[Path], None]:
    """A `write` callback: two files whose bytes depend on the step."""

    def write(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(bytes([step % 251]) * 40_000)
        (folder / "optim.safetensors").write_bytes(bytes([step % 241]) * 80_000)

    return write


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def save_steps(root: Path, *steps: int, keep: int = 9) -> None:
    for step in steps:
        save_checkpoint(root, step, writer(step), keep=keep)


# T3: damage


def truncate(folder: Path) -> None:
    os.truncate(folder / "optim.safetensors", 79_999)


def flip_bit(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[20_000] ^= 1
    path.write_bytes(content)


def remove_file(folder: Path) -> None:
    (folder / "optim.safetensors").unlink()


def add_pickle(folder: Path) -> None:
    (folder / "optim.pt").write_bytes(b"\x80\x04.")


def add_folder(folder: Path) -> None:
    (folder / "extra").mkdir()


def edit_manifest(**changes: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / MANIFEST
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return edit


def cut_manifest(folder: Path) -> None:
    os.truncate(folder / MANIFEST, 50)


def list_manifest(folder: Path) -> None:
    (folder / MANIFEST).write_text("[]")


DAMAGES = {
    "truncated": (truncate, r"optim\.safetensors: expected .*80000.*found .*79999"),
    "bit flipped": (flip_bit, r"model\.safetensors: expected .*sha256.*found .*sha256"),
    "missing": (remove_file, r"optim\.safetensors: missing"),
    "pickle": (add_pickle, r"optim\.pt: not listed"),
    "folder": (add_folder, r"extra: not listed"),
    "future format": (edit_manifest(format=2), r"manifest\.json: format version 2"),
    "other step": (edit_manifest(step=7), r"manifest\.json: step 7"),
    "files not a table": (edit_manifest(files=[]), r"manifest\.json: no list of files"),
    "outside file": (edit_manifest(files={"../x": {}}), r"\.\./x: missing"),
    "cut manifest": (cut_manifest, r"manifest\.json: "),
    "foreign manifest": (list_manifest, r"manifest\.json: format version None"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES.keys())
def test_t03_damage_is_refused_by_name(tmp_path, caplog, damage, message):
    save_steps(tmp_path, 1, 2, 3)
    newest = tmp_path / "step-00000003"
    damage(newest)
    with pytest.raises(CheckpointError, match=message):
        find_checkpoint(tmp_path)
    assert newest.exists()
    with caplog.at_level(logging.WARNING):
        assert find_checkpoint(tmp_path, allow_older=True) == tmp_path / "step-00000002"
    assert "step-00000003" in caplog.text
    # The damaged one is out of the way: a later restart needs no flag, and the step can be saved.
    assert find_checkpoint(tmp_path) == tmp_path / "step-00000002"
    save_steps(tmp_path, 3)
    assert find_checkpoint(tmp_path) == newest


def test_t03_message_holds_both_hashes(tmp_path):
    save_steps(tmp_path, 1)
    path = tmp_path / "step-00000001" / "model.safetensors"
    before = fingerprint(path)["sha256"]
    flip_bit(path.parent)
    with pytest.raises(CheckpointError) as caught:
        find_checkpoint(tmp_path)
    assert str(before) in str(caught.value)
    assert str(fingerprint(path)["sha256"]) in str(caught.value)


def test_t03_without_verification_the_damaged_one_would_be_chosen(tmp_path, monkeypatch):
    """Negative control of the tests above."""
    save_steps(tmp_path, 1, 2)
    flip_bit(tmp_path / "step-00000002")
    monkeypatch.setattr(checkpoint, "verify_checkpoint", lambda folder: None)
    assert find_checkpoint(tmp_path) == tmp_path / "step-00000002"


def test_t03_several_damaged_and_all_damaged(tmp_path):
    save_steps(tmp_path, 1, 2, 3)
    truncate(tmp_path / "step-00000003")
    flip_bit(tmp_path / "step-00000002")
    assert find_checkpoint(tmp_path, allow_older=True) == tmp_path / "step-00000001"
    remove_file(tmp_path / "step-00000001")
    with pytest.raises(CheckpointError, match="all 1 checkpoints are damaged"):
        find_checkpoint(tmp_path, allow_older=True)  # never a silent start from scratch


def test_t03_no_bit_of_the_manifest_may_flip(tmp_path):
    folder = save_checkpoint(tmp_path, 1, lambda f: (f / "a").write_bytes(b"abc"), keep=1)
    path = folder / MANIFEST
    good = path.read_bytes()
    for bit in range(8 * len(good)):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bad)
        with pytest.raises(CheckpointError):
            verify_checkpoint(folder)
    path.write_bytes(good)
    verify_checkpoint(folder)


def test_no_checkpoint_is_none(tmp_path, caplog):
    assert find_checkpoint(tmp_path / "absent") is None
    assert find_checkpoint(tmp_path) is None
    (tmp_path / "step-00000005").mkdir()  # no manifest: does not exist for resume
    (tmp_path / "step-5").mkdir()
    (tmp_path / "step-00000006").write_text("a file")
    assert find_checkpoint(tmp_path) is None
    assert "step-00000005" in caplog.text


def test_newest_is_by_number_not_by_name(tmp_path):
    save_steps(tmp_path, 99_999_999, 100_000_000)
    assert find_checkpoint(tmp_path) == tmp_path / "step-100000000"


# T4: a full disk


def full_disk(*args: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def in_the_callback(monkeypatch) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        writer(2)(folder)
        full_disk()

    return write


def in_the_manifest(monkeypatch) -> Callable[[Path], None]:
    monkeypatch.setattr(checkpoint, "write_json_atomic", full_disk)
    return writer(2)


def in_fsync(monkeypatch) -> Callable[[Path], None]:
    monkeypatch.setattr(checkpoint, "sync_path", full_disk)
    return writer(2)


def in_the_last_rename(monkeypatch) -> Callable[[Path], None]:
    rename = os.rename

    def fail_to_publish(source, target):
        full_disk() if ".tmp-" in Path(source).name else rename(source, target)

    monkeypatch.setattr(os, "rename", fail_to_publish)
    return writer(2)


def in_safetensors(monkeypatch) -> Callable[[Path], None]:
    """A real failed write, by the process' own file size limit: SafetensorError, not OSError."""

    def write(folder: Path) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        try:
            save_tensors(folder / "optim.safetensors", {"a": torch.zeros(10_000)})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return write


FULL_AT = [in_the_callback, in_the_manifest, in_fsync, in_the_last_rename, in_safetensors]


@pytest.mark.parametrize("existing", [[1], [1, 2]], ids=["next step", "same step again"])
@pytest.mark.parametrize("full_at", FULL_AT, ids=lambda f: f.__name__)
def test_t04_full_disk_leaves_the_old_ones(tmp_path, full_at, existing):
    save_steps(tmp_path, *existing)
    before = names(tmp_path)
    with pytest.MonkeyPatch.context() as monkeypatch:
        write = full_at(monkeypatch)
        with pytest.raises(CheckpointError, match=r"could not save step 2 .*(No space|too large)"):
            save_checkpoint(tmp_path, 2, write, keep=1)
    assert names(tmp_path) == before
    assert find_checkpoint(tmp_path) == tmp_path / before[-1]
    save_steps(tmp_path, 2, keep=1)  # there is space again
    assert names(tmp_path) == ["step-00000002"]


def test_an_interrupt_while_saving_cleans_up(tmp_path):
    def write(folder: Path) -> None:
        writer(2)(folder)
        raise KeyboardInterrupt

    save_steps(tmp_path, 1)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, 2, write, keep=1)
    assert names(tmp_path) == ["step-00000001"]


def test_a_subfolder_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="sub: a checkpoint holds files only"):
        save_checkpoint(tmp_path, 1, lambda folder: (folder / "sub").mkdir(), keep=1)
    assert names(tmp_path) == []


def test_a_copied_checkpoint_verifies_under_another_name(tmp_path):
    save_steps(tmp_path, 1)
    shutil.copytree(tmp_path / "step-00000001", tmp_path / "best")
    verify_checkpoint(tmp_path / "best")
