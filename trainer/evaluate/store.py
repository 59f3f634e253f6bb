"""samples.jsonl of an evaluation: what is drawn stays drawn, so an interrupted one goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from trainer.config import ConfigError
from trainer.evaluate.methods import Job
from trainer.files import read_json, write_json_atomic
from trainer.json_text import parse_json
from trainer.settings import changes

SAMPLES, IDENTITY = "samples.jsonl", "samples.json"
FLUSH_SECONDS = 5.0

Key = tuple[str, str, int, int]


class SampleStore:
    """The rows of one evaluation folder, by what they are samples of."""

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        """Open `folder`, or make it. Raises ConfigError when its rows have another `identity`:
        samples of another model or method must not be mixed in. OSError, ValueError (damage)."""
        folder.mkdir(parents=True, exist_ok=True)
        self.path, self.rows = folder / SAMPLES, {}
        _check_identity(folder / IDENTITY, identity)
        write_json_atomic(folder / IDENTITY, identity)
        if self.path.exists():
            self._read()
        self._file = self.path.open("a", encoding="ascii")
        self._flushed = time.monotonic()

    def _read(self) -> None:
        """All whole rows; a torn last line is cut off."""
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        for number, line in enumerate(content[:whole].splitlines(), start=1):
            try:
                row = parse_json(line)
                self.rows[row_key(row)] = row
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(f"{self.path}:{number}: not a sample ({error!r})") from None
        if whole < len(content):
            with self.path.open("r+b") as file:
                file.truncate(whole)

    def missing(self, wanted: Sequence[Job]) -> list[Job]:
        """Those of `wanted` that have no row yet."""
        return [job for job in wanted if job.key not in self.rows]

    def select(self, wanted: Sequence[Job]) -> Iterator[dict[str, Any]]:
        """The rows of `wanted`, in its order. KeyError for one that is not there."""
        return (self.rows[job.key] for job in wanted)

    def add(self, row: dict[str, Any]) -> None:
        """Keep a row; it is on disk a few seconds later, or with `close`."""
        self.rows[row_key(row)] = row
        self._file.write(json.dumps(row, allow_nan=False) + "\n")
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self._file.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        """Write what is left and close the file."""
        self._file.close()


def row_key(row: dict[str, Any]) -> Key:
    """What a row is a sample of. KeyError when it lacks a part."""
    return (row["data"], row["problem_id"], row["budget"], row["k"])


def _check_identity(path: Path, identity: dict[str, Any]) -> None:
    if not path.exists():
        return
    changed = changes(read_json(path), identity)
    if changed:
        raise ConfigError(
            f"out: the samples of {path.parent} were drawn with other settings; choose another "
            "out= or undo\n" + "\n".join(changed)
        )
