"""Grades samples as they end: the exact tier at once, the symbolic tier beside the decoding.

The exact parser takes a fraction of a millisecond, so it stays in this process. What it calls wrong
and cannot decide goes to the workers of a pool, if there is one, and is collected after the last
sample.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING

from trainer.grading import MAX_ANSWER_CHARS, UNGRADED, grade
from trainer.grading.frames import FrameError
from trainer.grading.normalise import compact, tokenise
from trainer.grading.parse import BRACKETS, parse
from trainer.types import Score

if TYPE_CHECKING:
    from trainer.grading.pool import WorkerPool
    from trainer.types import Problem

log = logging.getLogger(__name__)

_NUMERAL = re.compile(r"[0-9]\s*_")  # of another base
_FORMULA = re.compile(r"[0-9+*/^=<>-]|\\[a-z]")


class Grader:
    """`submit` samples, then `collect` their scores. Without a pool there is no symbolic tier.

    `alarm_share`: more samples that time out or crash their worker, as a share of those collected,
    are said in the log as an error.
    """

    def __init__(
        self, require_think: bool = True, pool: WorkerPool | None = None, alarm_share: float = 0.0
    ) -> None:
        self.require_think, self.pool, self.alarm_share = require_think, pool, alarm_share
        self._scores: dict[int, Score] = {}

    def submit(self, key: int, text: str, problem: Problem) -> None:
        """Grade one completion, or begin to. `key` is what `collect` knows it by."""
        score = self._scores[key] = grade(text, problem, require_think=self.require_think)
        if self.pool is None or score.reason != "wrong" or problem.kind != "math":
            return
        if truths := undecided(score.extracted, problem):
            try:
                self.pool.submit(key, score.extracted, truths)
            except FrameError:  # truths of tens of kilobytes: the exact tier has the last word
                log.warning("%s: too much to compare symbolically", problem.id)

    def collect(
        self, on_wait: Callable[[int, int], None] = lambda done, total: None
    ) -> dict[int, Score]:
        """{key: score} of all samples submitted since the last call.

        `on_wait(done, total)` is called while workers are waited for; what it raises passes.
        """
        scores, self._scores = self._scores, {}
        if self.pool is None:
            return scores
        total = len(scores)
        for key, verdict in self.pool.collect(lambda left: on_wait(total - left, total)).items():
            extracted = scores[key].extracted
            if verdict == "same":
                scores[key] = Score(1.0, "correct", extracted)
            elif verdict in UNGRADED:
                scores[key] = Score(0.0, verdict, extracted)
        sound_alarm([score.reason for score in scores.values()], self.alarm_share)
        return scores

    def close(self) -> None:
        """End the workers, if there are any."""
        if self.pool is not None:
            self.pool.close()


def sound_alarm(reasons: Sequence[str], alarm_share: float) -> None:
    """Says in the log, as an error, that more than this share of samples could not be graded."""
    lost = Counter(reason for reason in reasons if reason in UNGRADED)
    if lost.total() > alarm_share * len(reasons):
        log.error(
            "ALARM: %d of %d samples could not be graded (%s), more than grading.alarm_share=%g; "
            "no update counts them",
            lost.total(), len(reasons), dict(lost), alarm_share,
        )  # fmt: skip


def undecided(answer: str, problem: Problem) -> tuple[str, ...]:
    r"""The truths that the symbolic tier may compare with an answer the exact tier calls wrong.

    Not those that are exact numbers: there the exact tier is right, and a tier that computes would
    pay for boxing the question's own expression (`3+14`). For the same reason not an answer that
    stands in the question. Not words: as products of variables, ABCD is CBAD. Not numerals of
    another base, which math-verify does not know: 52_8 would be 52_9.
    """
    tokens = tokenise(answer)
    if not tokens or (len(tokens) > 1 and compact(tokens) in compact(tokenise(problem.question))):
        return ()
    return tuple(
        truth
        for truth in problem.answers
        if len(truth) <= MAX_ANSWER_CHARS
        and not _NUMERAL.search(truth)
        and _FORMULA.search("".join(tokenise(truth)))
        and not is_exact(parse(truth).value)
    )


def is_exact(value: Hashable) -> bool:
    """Whether a canonical value (see parse.py) holds exact numbers and nothing else."""
    if not isinstance(value, tuple):
        return not isinstance(value, str)  # a Fraction, or the terms of a surd
    kind, inner = value[0], value[-1]
    if kind in ("percent", "infinity"):
        return True
    if kind == "set":
        return all(is_exact(item) for item, _ in inner)
    if kind == "matrix":
        return all(is_exact(cell) for row in inner for cell in row)
    return (kind == "union" or kind in BRACKETS) and all(is_exact(item) for item in inner)
