"""Files of a run: fsync, sha256, JSON replaced in one rename, tensors without pickle."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from trainer.json_text import parse_json

_CHUNK = 1 << 20  # bytes read at a time while hashing


def sync_path(path: Path) -> None:
    """fsync a file (its bytes) or a folder (the names in it). Raises OSError.

    A rename is durable only after its folder is synced. The pages of a synced file are also
    dropped from the cache where the system can, so that reading it back asks the disk.
    """
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        if hasattr(os, "posix_fadvise"):  # not on macOS
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def fingerprint(path: Path) -> dict[str, int | str]:
    """{"bytes": size, "sha256": hex digest} of a file. Raises OSError."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return {"bytes": size, "sha256": digest.hexdigest()}


def write_json_atomic(path: Path, obj: Any) -> None:
    """Write `obj` as JSON: a reader, or a restart after a crash, sees the old file or the new one.

    Integers of any size and finite floats come back exactly; tuples come back as lists, and keys
    should be strings, as JSON has no others. NaN and infinities are a ValueError (they are not
    JSON, and no state of a healthy run holds one). A failed write (OSError) leaves the old file.
    """
    text = json.dumps(obj, allow_nan=False, indent=1)
    partial = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    sync_path(path.parent)


def read_json(path: Path) -> Any:
    """Parse a JSON file; ValueError if it is not JSON (NaN and infinities included), OSError."""
    return parse_json(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors of any device, shape and dtype to safetensors; SafetensorError on bad I/O."""
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path)


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file into CPU memory; SafetensorError if it is malformed.

    The library maps the file; the clones let go of it. Otherwise the moments, which live as long as
    the run, would hold on to the disk space of a checkpoint that retention has deleted.
    """
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
