"""How a model behaves at a budget: words of each kind, thinking against answer, steps."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

THINK_END = "</think>"
# A line of working of the embedded task, checks included (trainer/embedded/chains.py).
_STEP = re.compile(r"^(?:wait )?\d+(?:\+\d+)+=\d+$", re.MULTILINE)


def behaviour(
    rows: Sequence[dict[str, Any]], words: Mapping[str, Sequence[str]]
) -> dict[str, float]:
    """Occurrences of each group of `words` per 1,000 generated tokens of the sample rows."""
    tokens = sum(row["tokens"] for row in rows)
    patterns = {kind: word_pattern(listed) for kind, listed in words.items()}
    return {
        kind: 1000 * sum(len(found.findall(row["text"])) for row in rows) / tokens
        for kind, found in patterns.items()
    }


def thinking(rows: Sequence[dict[str, Any]], *, embedded: bool) -> dict[str, float | None]:
    """How the samples are divided; None where nothing is known.

    `think_tokens` and `answer_tokens` as means and `think_answer_ratio` of their sums, over samples
    that closed their thinking; `first_answer`, the share of the text before the final answer first
    stands in it; with `embedded` the mean number of lines of working, `steps`.
    """
    closed = [row for row in rows if THINK_END in row["text"]]
    think = sum(row["think_tokens"] for row in closed)
    answer = sum(row["tokens"] - row["think_tokens"] for row in closed)
    places = [first_answer(row["text"], row["answer"]) for row in rows]
    known = [place for place in places if place is not None]
    result = {
        "think_tokens": think / len(closed) if closed else None,
        "answer_tokens": answer / len(closed) if closed else None,
        "think_answer_ratio": think / answer if answer else None,
        "first_answer": float(np.mean(known)) if known else None,
    }
    if embedded:
        result["steps"] = float(np.mean([len(_STEP.findall(row["text"])) for row in rows]))
    return result


def word_pattern(words: Sequence[str]) -> re.Pattern[str]:
    """Finds the words or phrases as whole words, in any case; longer ones first."""
    listed = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    return re.compile(rf"(?<!\w)(?:{listed})(?!\w)", re.IGNORECASE)


def first_answer(text: str, answer: str | None) -> float | None:
    """Share of `text`, in characters, before `answer` first stands in it as a whole."""
    if not answer:
        return None
    found = re.search(rf"(?<![\w.]){re.escape(answer)}(?!\w)", text)
    return found.start() / len(text) if found else None
