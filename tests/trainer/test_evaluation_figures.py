"""Figures of an evaluation against values worked out by hand, and behaviour counts."""

import itertools
import math

import numpy as np
import pytest

from trainer.evaluate.behaviour import behaviour, first_answer, thinking, word_pattern
from trainer.evaluate.figures import (
    Figures,
    bootstrap_interval,
    figures,
    majority_at_k,
    pass_at_k,
)

HOW = Figures(bootstrap=500, seed=0)


def sample(problem="a", k=0, tokens=10, correct=True, answer="1", **more):
    row = {"problem_id": problem, "k": k, "tokens": tokens, "correct": correct, "answer": answer,
           "truncated": False, "reason": "correct" if correct else "wrong"}  # fmt: skip
    return {**row, **more}


def test_lengths_by_hand():
    rows = [sample(k=0, tokens=8), sample(k=1, tokens=12), sample("b", tokens=15, correct=False)]
    rows += [sample("b", k=1, tokens=11, truncated=True, correct=False, reason="no_answer")]
    found = figures(rows, 10, HOW)
    assert found["mean_tokens"] == 11.5
    assert found["deviation"] == pytest.approx(0.15)  # the paper's: errors cancel
    assert found["sample_deviation"] == pytest.approx((2 + 2 + 5 + 1) / 4 / 10)
    assert found["rmse"] == pytest.approx(math.sqrt((4 + 4 + 25 + 1) / 4))
    assert found["bias"] == pytest.approx(1.5)
    assert found["over"] == 0.75
    assert found["soft_over"] == 0.5  # 11 is not more than 1.1 times 10
    assert (found["truncated"], found["pass1"]) == (0.25, 0.5)
    assert found["reasons"] == {"correct": 0.5, "wrong": 0.25, "no_answer": 0.25}
    assert (found["n"], found["problems"]) == (2, 2)
    assert sum(found["reasons"].values()) == 1


def test_without_a_budget_there_is_nothing_to_deviate_from():
    found = figures([sample()], 0, HOW)
    assert found["deviation"] is found["rmse"] is found["over"] is None
    assert found["mean_tokens"] == 10


@pytest.mark.parametrize(("n", "right"), [(5, 0), (5, 2), (5, 5), (4, 1)])
def test_pass_at_k_is_the_share_of_all_subsets(n, right):
    verdicts = [i < right for i in range(n)]
    for k in range(1, n + 1):
        subsets = list(itertools.combinations(verdicts, k))
        assert pass_at_k(n, right, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_at_k_is_reported_for_powers_of_two_and_n():
    rows = [sample(k=k, correct=k == 0) for k in range(6)]
    found = figures(rows, 10, HOW)
    assert list(found["pass_k"]) == list(found["maj_k"]) == ["1", "2", "4", "6"]
    assert found["pass_k"]["1"] == pytest.approx(found["pass1"])
    assert found["pass1"] == pytest.approx(1 / 6)
    assert found["pass_k"]["6"] == 1.0


def test_majority():
    def votes(*answers):
        return [[sample(k=k, answer=a, correct=a in ("1", "1.0")) for k, a in enumerate(answers)]]

    assert majority_at_k(votes("2", "1", "1"), 3) == 1.0
    assert majority_at_k(votes("2", "1", "1.0"), 3) == 1.0  # equal values are one answer
    assert majority_at_k(votes("2", "1"), 2) == 0.0  # the earliest wins a tie
    assert majority_at_k(votes(None, None, "1"), 3) == 1.0  # no answer, no vote
    assert majority_at_k(votes(None), 1) == 0.0
    assert majority_at_k(votes("1", "1", "2", "2"), 2) == 0.5  # mean over blocks


def test_bootstrap_covers_the_mean_and_draws_problems():
    low, high = bootstrap_interval([0.0, 1.0] * 50, Figures(4000, 0))
    assert low < 0.5 < high
    assert high - low == pytest.approx(2 * 1.96 * 0.05, rel=0.12)  # the normal one: sd 0.5 / 10
    assert bootstrap_interval([1.0] * 9, HOW) == (1.0, 1.0)
    assert bootstrap_interval([0.0, 1.0] * 50, HOW) == bootstrap_interval([0.0, 1.0] * 50, HOW)
    # Samples of one problem that all agree tell no more than one of them.
    agreeing = [sample(p, k=k, correct=p < "c") for p in "abcd" for k in range(16)]
    single = [sample(p, correct=p < "c") for p in "abcd"]
    ends = [
        (f["pass1_low"], f["pass1_high"])
        for f in (figures(agreeing, 9, HOW), figures(single, 9, HOW))
    ]
    assert ends[0] == ends[1]


# Behaviour ------------------------------------------------------------------------------------


def text_row(text, tokens, think, answer="4"):
    return {"text": text, "tokens": tokens, "think_tokens": think, "answer": answer}


def test_words_are_counted_whole_in_any_case():
    found = word_pattern(["wait", "but", "what if", "so"])
    assert len(found.findall("Wait, but butter. What if, waiting? so-so")) == 5
    assert len(word_pattern(["double-check", "check"]).findall("double-check, check")) == 2


def test_figures_of_behaviour_by_hand():
    rows = [
        text_row("wait 1+3=4\nwait so </think>\\boxed{4}", 20, 15),
        text_row("1+3=4\n4+0=4\n</think>\\boxed{4}", 20, 16),
        text_row("no end so", 10, 10, None),
    ]
    words = {"self_correction": ("wait",), "conclusion": ("so",), "context": ("given",)}
    rate = pytest.approx(1000 * 2 / 50)
    assert behaviour(rows, words) == {"self_correction": rate, "conclusion": rate, "context": 0}
    found = thinking(rows, embedded=True)
    assert (found["think_tokens"], found["answer_tokens"]) == (15.5, 4.5)
    assert found["think_answer_ratio"] == pytest.approx(31 / 9)  # the unclosed one is left out
    assert found["steps"] == pytest.approx((1 + 2 + 0) / 3)
    places = [rows[0]["text"].index("4") / len(rows[0]["text"]),
              rows[1]["text"].index("4") / len(rows[1]["text"])]  # fmt: skip
    assert found["first_answer"] == pytest.approx(np.mean(places))
    assert "steps" not in thinking(rows, embedded=False)


def test_nothing_is_made_up_where_nothing_is_known():
    found = thinking([text_row("aha", 3, 3, None)], embedded=False)
    assert found["think_answer_ratio"] is found["first_answer"] is found["think_tokens"] is None


def test_first_answer_is_a_whole_number():
    assert first_answer("14 4 x", "4") == pytest.approx(3 / 6)
    assert first_answer("1.4 41", "4") is None
    assert first_answer("x", None) is None and first_answer("x", "") is None
