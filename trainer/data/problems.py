"""Loads problems from a JSONL, JSON or parquet file, or from a Hub data set.

A row without an answer, or with one longer than grading reads, is dropped and counted; anything
else malformed stops the load, with the file and the line, before a model is touched.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from os.path import isfile
from pathlib import Path

from trainer.grading import MAX_ANSWER_CHARS
from trainer.json_text import parse_json
from trainer.types import Problem

KINDS = ("math", "choice")
Row = tuple[str, object]  # (where it stands, for error messages; what stands there)


@dataclass(frozen=True)
class ProblemSet:
    """The problems of one source, in its order.

    Example: ProblemSet((Problem(...), ...), "math_train.jsonl", "9f86d0...", {"no_answer": 4})
    """

    problems: tuple[Problem, ...]
    source: str  # the spec as given
    sha256: str  # of the file's bytes; of the canonical rows for a Hub data set
    dropped: dict[str, int]  # reason -> rows


def load_problems(
    spec: str,
    *,
    question_key: str = "problem",
    answer_key: str = "answer",
    kind: str = "math",
    limit: int | None = None,
) -> ProblemSet:
    """Load every problem of `spec`, or the first `limit` of them.

    `spec` is the path of a .jsonl, .json (a list of objects, or an object that holds one list) or
    .parquet file, or `hub:owner/name[/config][:split]` (split "train" unless given). An answer is
    a string, a number (142.0 becomes "142") or a list of alternatives. A problem's id is the row's
    own `id` or `unique_id` when that is a string, else the source's stem and the row's index.

    Raises ValueError naming file and line for anything malformed, and for an empty result.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, not {kind!r}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, not {limit}")
    stem, rows, sha256 = source_rows(spec)
    problems: list[Problem] = []
    dropped = {"no_answer": 0}
    for index, (where, row) in enumerate(rows):
        problem = _problem(row, where, f"{stem}-{index}", (question_key, answer_key), kind)
        if problem is None:
            dropped["no_answer"] += 1
        elif max(map(len, problem.answers)) > MAX_ANSWER_CHARS:  # none would be graded correct
            dropped["long_answer"] = dropped.get("long_answer", 0) + 1
        else:
            problems.append(problem)
        if len(problems) == limit:
            break
    if not problems:
        raise ValueError(f"{spec}: no problems ({dropped['no_answer']} rows without an answer)")
    return ProblemSet(tuple(problems), spec, sha256, dropped)


def source_rows(spec: str) -> tuple[str, Iterator[Row], str]:
    """(stem for ids, rows as they stand, sha256) of a spec as `load_problems` takes it.

    Raises ValueError where the file or data set cannot be read; bad rows only as they are reached.
    """
    if spec.startswith("hub:"):
        rows, sha256 = _hub_rows(spec)
        return spec.split(":")[1].split("/")[1], rows, sha256
    return Path(spec).stem, *_file_rows(Path(spec))


def _problem(
    row: object, where: str, default_id: str, keys: tuple[str, str], kind: str
) -> Problem | None:
    """One row as a Problem; None when it has no answer."""
    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected an object, got {type(row).__name__}")
    for key in keys:
        if key not in row:
            raise ValueError(f"{where}: no key {key!r}; the keys are {', '.join(map(repr, row))}")
    question = row[keys[0]]
    if not isinstance(question, str) or not question.strip():
        raise ValueError(f"{where}: {keys[0]!r} must be a non-empty string, not {question!r:.80}")
    answers = _answers(row[keys[1]], f"{where}: {keys[1]!r}")
    if not answers:
        return None
    own_ids = (row.get("id"), row.get("unique_id"))
    own_id = next((one for one in own_ids if isinstance(one, str) and one), default_id)
    return Problem(own_id, question, answers, kind)


def _answers(value: object, where: str) -> tuple[str, ...]:
    """The accepted answers as strings; empty for null, blank text and empty lists."""
    alternatives = value if isinstance(value, list) else [value]
    texts = []
    for one in alternatives:
        if isinstance(one, bool) or not isinstance(one, str | int | float | None):
            raise ValueError(f"{where} must be text, a number or a list of them, not {one!r:.80}")
        if isinstance(one, float):
            one = _plain(one, where)
        if one is not None and str(one).strip():
            texts.append(str(one).strip())
    return tuple(texts)


def _plain(value: float, where: str) -> str:
    """A float as it would be written by hand: 142.0 is "142", 1e-05 is "0.00001"."""
    if not math.isfinite(value):
        raise ValueError(f"{where} must be finite, not {value}")
    text = format(Decimal(repr(value)), "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def _file_rows(path: Path) -> tuple[Iterator[Row], str]:
    readers = {".jsonl": _jsonl_rows, ".json": _json_rows, ".parquet": _parquet_rows}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{path}: expected one of {', '.join(readers)}, or hub:owner/name[:split]")
    if not isfile(path):  # False for a name too long for any; Path.is_file raises
        raise ValueError(f"{path}: no such file")
    content = path.read_bytes()
    return reader(path, content), hashlib.sha256(content).hexdigest()


def _decode(path: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}:{line}: not UTF-8 (byte {content[error.start]:#04x})") from error


def _jsonl_rows(path: Path, content: bytes) -> Iterator[Row]:
    # Not splitlines(): that also breaks at U+2028 and others, which JSON strings may hold.
    for number, line in enumerate(_decode(path, content).split("\n"), start=1):
        if line.strip():
            yield f"{path}:{number}", _parse_json(line, path, number)


def _json_rows(path: Path, content: bytes) -> Iterator[Row]:
    data = _parse_json(_decode(path, content), path, 1)
    if isinstance(data, dict):
        lists = [key for key, value in data.items() if isinstance(value, list)]
        if len(lists) != 1:
            raise ValueError(f"{path}: expected one list of problems, found lists {lists}")
        data = data[lists[0]]
    if not isinstance(data, list):
        raise ValueError(f"{path}: expected a list of objects, got {type(data).__name__}")
    for index, row in enumerate(data):
        yield f"{path}: item {index}", row


def _parse_json(text: str, path: Path, line: int) -> object:
    """`text`, which starts at `line` of `path`, as Python objects."""
    try:
        return parse_json(text)
    except json.JSONDecodeError as error:
        where = f"{path}:{line + error.lineno - 1}"
        raise ValueError(f"{where}: not JSON: {error.msg}, column {error.colno}") from error
    except ValueError as error:  # an integer of > 4,300 digits, 1,000 brackets
        raise ValueError(f"{path}:{line}: not usable JSON: {error}") from error


def _parquet_rows(path: Path, content: bytes) -> Iterator[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        message = f"{path}: reading parquet needs pip install 'lcpo-trainer[parquet]'"
        raise ValueError(message) from error
    try:
        rows = pyarrow.parquet.read_table(pyarrow.BufferReader(content)).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:  # ValueError: names not UTF-8
        raise ValueError(f"{path}: not a readable parquet file: {error}") from error
    for index, row in enumerate(rows):
        yield f"{path}: row {index}", row


def _hub_rows(spec: str) -> tuple[Iterator[Row], str]:
    name, _, split = spec.removeprefix("hub:").partition(":")
    parts = name.split("/")
    if len(parts) not in (2, 3) or not all(parts):
        raise ValueError(f"{spec!r}: expected hub:owner/name or hub:owner/name:split")
    try:
        import datasets
    except ImportError as error:
        message = f"{spec}: reading from the Hub needs pip install 'lcpo-trainer[hub]'"
        raise ValueError(message) from error
    try:
        rows = list(datasets.load_dataset("/".join(parts[:2]), *parts[2:], split=split or "train"))
    except OSError as error:  # not found, no network, offline mode: all are OSErrors there
        raise ValueError(f"{spec}: cannot be loaded ({error}); offline?") from error
    # The rows, not the Hub's files: those are re-sharded and re-compressed without a change.
    canonical = "\n".join(json.dumps(row, sort_keys=True, default=str) for row in rows)
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    return iter([(f"{spec}: row {index}", row) for index, row in enumerate(rows)]), digest
