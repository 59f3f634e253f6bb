"""The paper's claims in miniature, each met or not by the figures of one seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.embedded.outside import JUDGED

DEVIATION, CORRELATION, RISE = 0.03, 0.98, 0.15
S1_POINTS, S1_FACTOR, TIGHT = 0.20, 2.0, 2
WITHIN, SLACK = 0.97, 0.01
EPS = 1e-9  # 0.29 - 0.30 is below -0.01 in floating point

Rows = Sequence[dict[str, Any]]  # of one method and data set, by ascending budget


@dataclass(frozen=True)
class Claim:
    """A claim with its verdict and the figures behind it."""

    number: int
    text: str
    met: bool
    evidence: str


def judge(methods: Mapping[str, Rows], easy_hard: tuple[float, float]) -> list[Claim]:
    """All six claims. `methods` as results has them; `easy_hard`: L1-Max's mean tokens on both."""
    exact = methods["l1_exact"]
    outside = {name: rows for name, rows in methods.items() if name.startswith("l1_exact:")}
    return [
        hits_the_budget(exact),
        rises(exact),
        beats_s1(exact, methods["s1"]),
        stays_within(methods["l1_max"], exact, easy_hard),
        matches_the_base(methods["l1_exact_at_base"][0], methods["base"][0]),
        holds_outside(outside),
    ]


def hits_the_budget(exact: Rows) -> Claim:
    """1: mean deviation over budgets, correlation of used with requested tokens."""
    deviation = float(np.mean([row["deviation"] for row in exact]))
    each = float(np.mean([row["sample_deviation"] for row in exact]))
    rmse = float(np.mean([row["rmse"] for row in exact]))
    correlation = exact[0]["correlation"]
    return Claim(
        1,
        f"L1-Exact: mean length deviation at most {DEVIATION:.0%}, correlation at least "
        f"{CORRELATION}",
        deviation <= DEVIATION + EPS and correlation >= CORRELATION,
        f"deviation {deviation:.1%} (a sample's own: {each:.1%}), RMSE {rmse:.1f} tokens, "
        f"correlation {correlation:.3f}",
    )


def rises(exact: Rows) -> Claim:
    """2: no budget is below the interval of a shorter one's accuracy, and the longest is better."""
    gain = exact[-1]["pass1"] - exact[0]["pass1"]
    return Claim(
        2,
        f"accuracy rises with the budget, monotone within intervals, by at least "
        f"{RISE * 100:.0f} points",
        monotone(exact) and gain >= RISE - EPS,
        f"{_accuracies(exact)}: {gain * 100:+.1f} points, "
        f"{'monotone' if monotone(exact) else 'not monotone'} within intervals",
    )


def monotone(rows: Rows) -> bool:
    """Whether no accuracy is below the 95% interval of an earlier one."""
    return all(
        later["pass1"] >= earlier["pass1_low"]
        for i, later in enumerate(rows)
        for earlier in rows[:i]
    )


def beats_s1(exact: Rows, s1: Rows) -> Claim:
    """3: at S1's own mean tokens, L1's accuracy between its budgets."""
    pairs = [(accuracy_at(exact, row["mean_tokens"]), row["pass1"]) for row in s1]
    clear = [a >= b + S1_POINTS - EPS or (a > 0 and a >= S1_FACTOR * b) for a, b in pairs[:TIGHT]]
    return Claim(
        3,
        f"against S1 at equal tokens used: {S1_POINTS * 100:.0f} points or {S1_FACTOR:g} times at "
        f"the {TIGHT} tightest budgets, nowhere worse",
        all(clear) and all(a >= b for a, b in pairs),
        "; ".join(
            f"{row['mean_tokens']:.0f} tokens: {a:.1%} against {b:.1%}"
            for row, (a, b) in zip(s1, pairs, strict=True)
        ),
    )


def accuracy_at(rows: Rows, tokens: float) -> float:
    """Accuracy at a mean length: linear between budgets and down to (0, 0), flat above the last."""
    points = sorted((row["mean_tokens"], row["pass1"]) for row in rows)
    x, y = zip((0.0, 0.0), *points, strict=True)
    return float(np.interp(tokens, x, y))


def stays_within(best: Rows, exact: Rows, easy_hard: tuple[float, float]) -> Claim:
    """4: L1-Max. Easy and hard problems are those with the fewest and the most numbers."""
    within = 1 - float(np.mean([row["over"] for row in best]))
    gaps = [a["pass1"] - b["pass1"] for a, b in zip(best, exact, strict=True)]
    easy, hard = easy_hard
    return Claim(
        4,
        f"L1-Max: at least {WITHIN:.0%} of samples within the budget, accuracy at least that of "
        f"L1-Exact less {SLACK * 100:.0f} point at each budget, fewer tokens on easy problems",
        within >= WITHIN - EPS and min(gaps) >= -SLACK - EPS and easy < hard,
        f"{within:.1%} within; accuracy {_accuracies(best)}, against L1-Exact "
        f"{', '.join(f'{gap * 100:+.1f}' for gap in gaps)} points; {easy:.1f} tokens on easy "
        f"problems, {hard:.1f} on hard ones",
    )


def matches_the_base(at_base: dict[str, Any], base: dict[str, Any]) -> Claim:
    """5: asked for the base model's own mean length."""
    return Claim(
        5,
        "at the base model's own mean length, accuracy at least the base model's",
        at_base["pass1"] >= base["pass1"],
        f"{at_base['budget']} tokens asked, {at_base['mean_tokens']:.1f} used: "
        f"{at_base['pass1']:.1%} against {base['pass1']:.1%} with {base['mean_tokens']:.1f}",
    )


def holds_outside(outside: Mapping[str, Rows]) -> Claim:
    """6: problems outside training; a rise is from the shortest to the longest, and monotone."""
    by_set = {name.partition(":")[2]: rows for name, rows in outside.items()}
    judged = [rows for name, rows in by_set.items() if name in JUDGED]
    found = []
    for name, rows in by_set.items():
        deviation = float(np.mean([row["deviation"] for row in rows]))
        found.append(
            f"{name}{'' if name in JUDGED else ' (shown, not judged)'}: deviation "
            f"{deviation:.1%}, accuracy {_accuracies(rows)}"
        )
    return Claim(
        6,
        "out of distribution, other numbers: deviation reported, accuracy still rises with the "
        "budget, monotone within intervals",
        len(judged) == len(JUDGED)
        and all(monotone(rows) and rows[-1]["pass1"] > rows[0]["pass1"] for rows in judged),
        "; ".join(found),
    )


def _accuracies(rows: Rows) -> str:
    return " → ".join(f"{row['pass1']:.1%}" for row in rows)
