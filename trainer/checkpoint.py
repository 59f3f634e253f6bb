"""Checkpoints that are whole or absent: a folder, a manifest written last, one rename.

    <root>/step-00000042/              complete: its manifest lists size and sha256 of each file
    <root>/step-00000042.tmp-<pid>/    being written (or deleted): never read
    <root>/step-00000042.old-<pid>/    the same step's earlier folder while it is being replaced
    <root>/step-00000042.damaged/      passed over by `allow_older`; kept for whoever looks into it

Order of a save: files, fsync, manifest, fsync, read back and compare, rename, fsync of the root.
A kill or a power cut at any point leaves the earlier checkpoints as they were, as nothing gets its
final name before its bytes are on disk. Which one is the latest is computed from the names.
A folder without a manifest was never complete and does not exist for resume. One that disagrees
with its manifest is damaged and refused aloud: going on from an older one loses work in silence.
One process writes to a root (rank 0 of a run); others may read.

This file knows nothing of models: the caller's `write` fills the folder.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError

from trainer.files import fingerprint, read_json, sync_path, write_json_atomic

log = logging.getLogger(__name__)

FORMAT = 1  # version of the folder's layout, in its manifest
MANIFEST = "manifest.json"
STATE = "state.json"
MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's per-parameter tensors; its step count goes to JSON

_NAME = re.compile(r"step-(\d{8}|[1-9]\d{8,})(?:\.(tmp|old)-([1-9]\d{0,6}))?")


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or is damaged; the message names the file."""


class _Entry(NamedTuple):
    step: int
    kind: str  # "" final name, "tmp", "old"
    pid: int  # of the writer; 0 under a final name
    path: Path

    @property
    def is_complete(self) -> bool:
        return not self.kind and (self.path / MANIFEST).exists()


def save_checkpoint(root: Path, step: int, write: Callable[[Path], None], *, keep: int) -> Path:
    """Write the checkpoint of `step` and return its folder; then keep the newest `keep` in all.

    `write(folder)` puts plain files, no subfolders, into an empty folder. Older checkpoints are
    deleted only after the new one was read back from disk. A folder of the same step, partial or
    complete, is replaced. A full disk, or any other OSError or SafetensorError, removes the partial
    folder, leaves earlier checkpoints, and raises CheckpointError: the loop decides what that
    means. Whatever else `write` raises passes through, with the same clean-up.
    """
    if step < 0:
        raise ValueError(f"checkpoint step must be >= 0, got {step}")
    if keep < 1:
        raise ValueError(f"checkpoints to keep must be >= 1, got {keep}")
    try:
        _write_and_publish(root, step, write)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"could not save step {step} under {root}: {error}") from error
    _delete_older(root, step, keep)
    return _path(root, step)


def find_checkpoint(root: Path, *, allow_older: bool = False) -> Path | None:
    """The newest checkpoint under `root`, every byte verified; None if there is none.

    A damaged newest one raises CheckpointError with the file and both sha256. With `allow_older`
    the next older valid one is returned and the damaged ones are renamed to `*.damaged`, so that
    the run that goes on from there can be resumed in its turn; it raises if none is valid.
    Leftovers of killed saves are removed.
    """
    if not root.is_dir():
        return None
    _clean_leftovers(root)
    damaged: list[Path] = []
    for entry in _entries(root):
        if not entry.is_complete:
            if not entry.kind:
                log.warning("%s has no %s: ignored", entry.path, MANIFEST)
            continue
        try:
            verify_checkpoint(entry.path)
        except CheckpointError as error:
            if not allow_older:
                raise CheckpointError(f"{error} (resume.allow_older=true goes back)") from error
            log.warning("passing over a damaged checkpoint: %s", error)
            damaged.append(entry.path)
            continue
        for path in damaged:
            aside = path.with_name(f"{path.name}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(path, aside)
        return entry.path
    if damaged:
        raise CheckpointError(f"{root}: all {len(damaged)} checkpoints are damaged")
    return None


def verify_checkpoint(folder: Path) -> None:
    """Compare a folder with its manifest, reading every byte; CheckpointError on any difference.

    Refused: a manifest that is absent, unreadable, of another format version or of another step
    than the folder's name; a missing file; a file the manifest does not list; a wrong sha256.
    """
    try:
        files = _manifest_files(folder)
        present = {path.name for path in folder.iterdir()} - {MANIFEST}
        for name in sorted(files.keys() - present):
            raise CheckpointError(f"{folder / name}: missing, expected {files[name]}")
        for name in sorted(present - files.keys()):
            raise CheckpointError(f"{folder / name}: not listed in {MANIFEST}, refused")
        for name, expected in files.items():
            found = fingerprint(folder / name)
            if found != expected:
                raise CheckpointError(f"{folder / name}: expected {expected}, found {found}")
    except OSError as error:
        raise CheckpointError(f"{folder}: {error}") from error


def read_state(folder: Path) -> dict[str, Any]:
    """The counters, cursor and RNG of a verified checkpoint (its `state.json`)."""
    return read_json(folder / STATE)


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, params: Mapping[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
    """AdamW's state by parameter name: ({"<name>.exp_avg": ..., ...}, {"<name>": step count}).

    `params` is `dict(model.named_parameters())`. The tensors are the live ones, not copies. A
    parameter that was never stepped has no entry. Learning rates are configuration, not state.
    """
    tensors: dict[str, torch.Tensor] = {}
    steps: dict[str, int] = {}
    for name in _names_in_order(optimizer, params):
        state = optimizer.state.get(params[name])
        if not state:
            continue
        assert state.keys() == {"step", *MOMENTS}, f"not a plain AdamW state: {sorted(state)}"
        steps[name] = int(state["step"])
        tensors.update({f"{name}.{key}": state[key] for key in MOMENTS})
    return tensors, steps


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer,
    params: Mapping[str, torch.Tensor],
    tensors: Mapping[str, torch.Tensor],
    steps: Mapping[str, int],
) -> None:
    """Undo `optimizer_tensors`: afterwards the next step is bit-equal; parameter groups stay.

    Raises CheckpointError where names, shapes or dtypes are not those of this model: torch would
    cast moments of another dtype in silence. Tensors on the right device are taken, not copied.
    """
    names = _names_in_order(optimizer, params)
    owner = {f"{name}.{key}": name for name in steps for key in MOMENTS}
    unmatched = (tensors.keys() ^ owner.keys()) | (steps.keys() - set(names))
    if unmatched:
        raise CheckpointError(f"optimizer state of another model: unmatched {sorted(unmatched)}")
    for key, name in owner.items():
        found, wanted = ((t.dtype, t.shape) for t in (tensors[key], params[name]))
        if found != wanted:
            raise CheckpointError(f"optimizer state {key}: found {found}, expected {wanted}")
    state = {}
    for index, name in enumerate(names):
        if name in steps:
            state[index] = {key: tensors[f"{name}.{key}"] for key in MOMENTS}
            state[index]["step"] = torch.tensor(float(steps[name]))  # AdamW's own: float32
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _names_in_order(
    optimizer: torch.optim.Optimizer, params: Mapping[str, torch.Tensor]
) -> list[str]:
    """Names of the optimizer's parameters in torch's own numbering (groups laid end to end)."""
    name_of = {id(param): name for name, param in params.items()}
    return [name_of[id(param)] for group in optimizer.param_groups for param in group["params"]]


def _path(root: Path, step: int, kind: str = "") -> Path:
    return root / (f"step-{step:08d}" + (f".{kind}-{os.getpid()}" if kind else ""))


def _entries(root: Path) -> list[_Entry]:
    """Folders under `root` with one of our names, newest step first."""
    entries = []
    for path in root.iterdir():
        match = _NAME.fullmatch(path.name)
        if match and path.is_dir():
            entries.append(_Entry(int(match[1]), match[2] or "", int(match[3] or 0), path))
    return sorted(entries, reverse=True)


def _write_and_publish(root: Path, step: int, write: Callable[[Path], None]) -> None:
    final, partial = _path(root, step), _path(root, step, "tmp")
    if not root.is_dir():
        root.mkdir(parents=True)
        sync_path(root.parent)
    _clean_leftovers(root, step)
    try:
        partial.mkdir()
        write(partial)
        _seal(partial, step)
        verify_checkpoint(partial)
        if final.exists():
            os.rename(final, _path(root, step, "old"))
        os.rename(partial, final)
        sync_path(root)
    finally:
        _clean_leftovers(root, step)


def _seal(folder: Path, step: int) -> None:
    """Put every file on disk, then the manifest that vouches for it."""
    files = {}
    for path in sorted(folder.iterdir()):
        if not path.is_file():
            raise CheckpointError(f"{path}: a checkpoint holds files only, no folders")
        files[path.name] = fingerprint(path)
        sync_path(path)
    assert MANIFEST not in files, "write() must leave the manifest to save_checkpoint"
    write_json_atomic(folder / MANIFEST, {"format": FORMAT, "step": step, "files": files})


def _manifest_files(folder: Path) -> dict[str, Any]:
    """The manifest's {file name: fingerprint}; OSError or CheckpointError if it is no good."""
    path = folder / MANIFEST
    try:
        manifest = read_json(path)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    version = manifest.get("format") if isinstance(manifest, dict) else None
    if version != FORMAT:
        raise CheckpointError(f"{path}: format version {version!r}, this code reads {FORMAT}")
    named = _NAME.fullmatch(folder.name)
    if named and manifest.get("step") != int(named[1]):
        raise CheckpointError(f"{path}: step {manifest.get('step')!r} in a folder of another step")
    files = manifest.get("files")
    if not isinstance(files, dict):
        raise CheckpointError(f"{path}: no list of files")
    return files


def _clean_leftovers(root: Path, step: int | None = None) -> None:
    """Remove what killed saves left: theirs, ours, and anyone's of `step`, which we are writing.

    A live process' folder of another step is left alone: a reader must not harm a running save.
    """
    for entry in _entries(root):
        if not entry.kind:
            continue
        if entry.step != step and entry.pid != os.getpid() and _is_alive(entry.pid):
            continue
        final = _path(root, entry.step)
        if entry.kind == "old" and not final.exists():
            os.rename(entry.path, final)  # the kill fell between the two renames of a replacement
        else:
            shutil.rmtree(entry.path, ignore_errors=True)


def _delete_older(root: Path, step: int, keep: int) -> None:
    """Delete checkpoints older than `step` beyond the `keep - 1` newest of them.

    Each one first gets a leftover's name, so that a kill halfway cannot leave a damaged checkpoint.
    What goes wrong here is only logged: the new checkpoint is safe.
    """
    older = [e for e in _entries(root) if e.step < step and e.is_complete]
    try:
        for entry in older[keep - 1 :]:
            os.rename(entry.path, _path(root, entry.step, "tmp"))
        _clean_leftovers(root)
    except OSError as error:
        log.warning("could not delete an old checkpoint: %s", error)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)  # alive, and another user's
    return True
