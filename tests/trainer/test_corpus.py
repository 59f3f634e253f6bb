"""The corpus of the embedded base: pure examples, wider than the task, weak hints of the budget."""

import itertools
import math
import random
import re

import numpy as np
import pytest

from tests.trainer.test_embedded import LENGTHS, boxed, lines_of
from trainer.embedded import corpus, task
from trainer.embedded.chains import EOS, MIN_LENGTH, THINK_END
from trainer.embedded.corpus import Hints, draw_length, example
from trainer.embedded.outside import OUTSIDE
from trainer.embedded.task import split_of
from trainer.embedded.tokenizer import build_tokenizer
from trainer.evaluate.budgets import ranks
from trainer.metrics import correlation


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def examples(tokenizer, hints: Hints, count=1500) -> list[tuple[str, int, int]]:
    """(mode, budget in the prompt, tokens of the chain) of the first `count` examples."""
    rows = []
    for index in range(count):
        prompt, chain = example(tokenizer, 0, index, hints)
        found = re.search(r" Think for (maximum )?(\d+) tokens\.", tokenizer.decode(prompt))
        mode = ("max" if found[1] else "exact") if found else "none"
        rows.append((mode, int(found[2]) if found else 0, len(chain)))
    return rows


def rank_correlation(rows) -> float:
    asked, written = np.array([row[1:] for row in rows if row[0] == "exact"]).T
    return correlation(ranks(asked), ranks(written))


def test_examples_are_pure(tokenizer):
    hints = Hints(0.3, 0.1)
    straight = [example(tokenizer, 0, i, hints) for i in range(40)]
    assert [example(tokenizer, 0, i, hints) for i in reversed(range(40))] == straight[::-1]
    other = [example(tokenizer, 1, i, hints) for i in range(40)]
    # Not the problems alone: the lengths are another draw too.
    assert [len(chain) for _, chain in other] != [len(chain) for _, chain in straight]


def test_examples_are_wider_than_the_task_and_never_held_out(tokenizer):
    met = set()
    for index in range(1500):
        prompt, chain = example(tokenizer, 0, index, Hints(0.3, 0.1))
        found = re.match(r"<\|user\|>([\d+]+)=\? Let's think", tokenizer.decode(prompt))
        assert tokenizer.decode(prompt).endswith("<|assistant|><think>")
        numbers = [int(n) for n in found[1].split("+")]
        assert split_of(numbers) == "train"
        met.add((len(numbers), max(numbers) > task.NUMBERS[1]))
        text = tokenizer.decode(chain)
        assert text.count(THINK_END) == 1 and text.endswith(EOS)
        if not lines_of(text):  # answered directly, so nothing can have slipped
            assert boxed(text) == sum(numbers)
    assert met == set(itertools.product(range(4, 11), (False, True)))


def test_the_corpus_covers_every_kind_of_sum_that_is_evaluated():
    kinds = [*OUTSIDE.values(), (task.TERMS, task.NUMBERS)]
    (least, most), spans = corpus.TERMS, corpus.SPANS
    for (fewest, numerous), (low, high) in kinds:
        assert least <= fewest <= numerous <= most
        assert any(span[0] <= low and high <= span[1] for span in spans)


def test_shares_of_the_modes(tokenizer):
    rows = examples(tokenizer, Hints(0.0, 0.1))
    shares = [sum(row[0] == mode for row in rows) / len(rows) for mode in ("none", "exact", "max")]
    assert shares == pytest.approx([0.15, 0.50, 0.35], abs=0.04)


def test_without_hints_the_budget_says_nothing(tokenizer):
    assert abs(rank_correlation(examples(tokenizer, Hints(0.0, 0.05)))) < 0.1


def test_with_hints_the_budget_is_meant(tokenizer):
    rows = examples(tokenizer, Hints(1.0, 0.05))
    assert rank_correlation(rows) > 0.97
    within = [row for row in rows if row[0] == "exact" and 30 < row[1] < 80]  # not cut at LONGEST
    errors = [math.log(asked / n) for _, asked, n in within]
    assert np.mean(errors) == pytest.approx(0, abs=0.01)
    assert np.std(errors) == pytest.approx(0.05, abs=0.01)
    room = [n / asked for mode, asked, n in rows if mode == "max"]
    assert min(room) < 0.3 and max(room) <= 1.0  # a maximum is kept, and not always used


def test_without_a_budget_chains_are_as_long_as_their_sum_asks_for(tokenizer):
    rows = examples(tokenizer, Hints(0.0, 0.1))
    free = [n for mode, _, n in rows if mode == "none"]
    assert 60 < np.mean(free) < 90 and min(free) > MIN_LENGTH


def test_share_of_hints(tokenizer):
    """With no noise a meant budget is the length itself; some 2% hit it by chance."""
    rows = [row for row in examples(tokenizer, Hints(0.3, 0.0)) if row[0] == "exact"]
    assert sum(asked == n for _, asked, n in rows) / len(rows) == pytest.approx(0.31, abs=0.07)


def test_lengths_reach_both_ends_and_favour_short_chains():
    rng = random.Random(0)
    drawn = [draw_length(rng) for _ in range(6000)]
    assert set(drawn) == set(LENGTHS)
    # Half the draws are uniform (mean 56), half log-uniform (mean 96 / ln 13 = 37).
    assert np.mean(drawn) == pytest.approx((56 + 37.4) / 2, abs=1.5)
