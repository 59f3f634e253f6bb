"""The samples of a report: which of them go into the file, and in what form its script reads them.

The same problems are kept of every method, so that any two can be laid side by side. All text is
a model's or a data set's: it is stripped of control characters here, and stays text in the page.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from trainer.samples import clean, deviation, parts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trainer.report.sources import Source

PER_CELL = 4  # samples of one problem by one method at one budget
MAX_TEXT = 8_000  # characters of a text; of a longer one the middle is left out
_HEAD = MAX_TEXT // 4  # the rest of what is kept is its end, with the answer

Key = tuple[str, str]  # data set and problem
Column = tuple[str, int | None]  # method and budget, None where it differs from sample to sample


@dataclass(frozen=True)
class Library:
    """Samples for the page: `content` is what its script reads, JSON in all parts.

    `kept` of `found` samples are in it.
    """

    content: dict[str, Any]
    kept: int
    found: int


def build_library(sources: Sequence[Source], limit: int) -> Library:
    """At most `limit` samples (but one problem at least), of all data sets in turn.

    Reads the samples twice, as those of one evaluation can be larger than memory. Raises
    ValueError, OSError.
    """
    counts: dict[Key, Counter[Column]] = {}
    columns: dict[Column, int] = {}
    for row in (row for source in sources for row in source.samples()):
        counts.setdefault(_key(row), Counter())[_column(row)] += 1
        columns.setdefault(_column(row), 0)
    order = {method: i for i, (method, _) in reversed(list(enumerate(columns)))}
    ordered = sorted(columns, key=lambda column: (order[column[0]], column[1] or 0))
    columns = {column: i for i, column in enumerate(ordered)}
    problems: dict[Key, dict[str, Any]] = {key: {} for key in _choose(counts, limit)}
    kept: Counter[tuple[Key, Column]] = Counter()
    for row in (row for source in sources for row in source.samples()):
        key, column = _key(row), _column(row)
        if key in problems and kept[key, column] < PER_CELL:
            kept[key, column] += 1
            problem = problems[key] or _problem(row)
            problem["samples"].append(_sample(row) | {"column": columns[column]})
            problems[key] = problem
    content = {
        "columns": [_column_name(column) for column in columns],
        "start": _start(list(columns)),
        "problems": list(problems.values()),
    }
    return Library(content, kept.total(), sum(count.total() for count in counts.values()))


def shorten(text: str) -> str:
    """`text` with its middle left out, and how much that is, when it exceeds MAX_TEXT characters.

    Example: "aaa…zzz" of 8,100 characters is 2,000 of them, "[… 100 characters left out …]", 6,000.
    """
    if len(text) <= MAX_TEXT:
        return text
    left_out = f"\n[… {len(text) - MAX_TEXT:,} characters left out …]\n"
    return text[:_HEAD] + left_out + text[len(text) - (MAX_TEXT - _HEAD) :]


def _choose(counts: dict[Key, Counter[Column]], limit: int) -> list[Key]:
    """Problems until their samples exceed the limit: data sets take turns, each begins with the
    problems that most methods have answered."""
    by_data: dict[str, list[Key]] = {}
    for key in sorted(counts, key=lambda key: -len(counts[key])):
        by_data.setdefault(key[0], []).append(key)
    chosen: list[Key] = []
    left = limit
    for key in (key for turn in zip_longest(*by_data.values()) for key in turn if key):
        left -= sum(min(n, PER_CELL) for n in counts[key].values())
        if left < 0 and chosen:
            break
        chosen.append(key)
    return chosen


def _key(row: dict[str, Any]) -> Key:
    return str(row["data"]), str(row["problem_id"])


def _column(row: dict[str, Any]) -> Column:
    return row["method"], None if row.get("rollout") else row["budget"]


def _column_name(column: Column) -> str:
    method, budget = column
    return clean(method) if budget is None else f"{clean(method)} · {budget} tokens"


def _start(columns: list[Column]) -> list[int]:
    """What to lay side by side at first: two methods at the largest budget they share.

    Without such a pair the least and the largest budget; -1 stands for nothing.
    """
    pairs = [
        (i, j)
        for i, (method, budget) in enumerate(columns)
        for j, (other, same) in enumerate(columns)
        if method != other and budget == same is not None and i < j
    ]
    if pairs:
        return list(max(pairs, key=lambda pair: columns[pair[0]][1]))
    return [0, len(columns) - 1] if len(columns) > 1 else [len(columns) - 1, -1]


def _problem(row: dict[str, Any]) -> dict[str, Any]:
    truth = row["truth"] if isinstance(row["truth"], list) else [row["truth"]]
    data, problem_id = _key(row)
    return {
        "data": clean(data),
        "id": clean(problem_id),
        "question": shorten(clean(str(row["problem"]))),
        "truth": " or ".join(shorten(clean(str(answer))) for answer in truth),
        "samples": [],
    }


def _sample(row: dict[str, Any]) -> dict[str, Any]:
    text = shorten(clean(row["text"]))
    answer = None if row["answer"] is None else shorten(clean(str(row["answer"])))
    return {
        "text": text,
        "parts": parts(text, row["reason"], answer),
        "tokens": row["tokens"],
        "budget": row["budget"],
        "deviation": deviation(row) if row["budget"] else 0.0,
        "reason": clean(str(row["reason"])),
        "answer": answer,
    }
