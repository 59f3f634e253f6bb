"""Evaluation: what is asked of the engine, and the figures by budget and over all, by hand."""

import math

import numpy as np
import pytest
from trainer_helpers import make_config

from trainer.embedded.task import make_problem
from trainer.embedded.tokenizer import build_tokenizer
from trainer.evaluate import evaluate
from trainer.evaluate.budgets import ranks, summary
from trainer.grading.grader import Grader
from trainer.metrics import correlation
from trainer.types import Completion, Problem

TOKENIZER = build_tokenizer()
PROBLEMS = [make_problem(0, i, "heldout") for i in range(3)]
OVERRIDES = ("scale=embedded", "evaluate.budgets=[16,100]", "evaluate.samples=2")


class FakeEngine:
    """Answers each prompt rightly, after four tokens of thinking; remembers what was asked."""

    def __init__(self, think_end: str = "</think>") -> None:
        self.think_end = think_end

    def generate(self, requests, sampling, on_progress):
        self.requests, self.sampling = requests, sampling
        on_progress(len(requests), len(requests))
        answers = []
        for request in requests:
            terms = TOKENIZER.decode(request.token_ids).split("=?")[0].removeprefix("<|user|>")
            total = sum(map(int, terms.split("+")))
            text = f"so so so so {self.think_end}\\boxed{{{total}}}<|end|>"
            ids = TOKENIZER.encode(text, add_special_tokens=False)
            answers.append(Completion(ids, [0.0] * len(ids), False))
        return answers


def run(*overrides, problems=PROBLEMS, engine=None, **more):
    engine = engine or FakeEngine()
    settings = make_config(*OVERRIDES, *overrides).evaluate
    keywords = {"mode": "exact", "grader": Grader(), "seed": 0, **more}
    return evaluate(settings, problems, engine, TOKENIZER, **keywords), engine


# What is asked --------------------------------------------------------------------------------


def test_every_budget_problem_and_sample_once():
    result, engine = run()
    texts = [TOKENIZER.decode(r.token_ids) for r in engine.requests]
    expected = [
        f"<|user|>{p.question} Let's think step by step and output the final answer within "
        f"\\boxed{{}}. Think for {budget} tokens.<|assistant|><think>"
        for budget in (16, 100)
        for p in PROBLEMS
        for _ in range(2)
    ]
    assert sorted(texts) == sorted(expected)
    assert len({r.seed for r in engine.requests}) == 12
    assert [cell["samples"] for cell in result["budgets"]] == [6, 6]


def test_limit_and_sampling_are_the_evaluations_own():
    overrides = ["evaluate.limit_factor=1.5", "evaluate.temperature=0", "evaluate.top_p=0.9"]
    _, engine = run(*overrides)
    limits = {TOKENIZER.decode(r.token_ids).split(" tokens")[0][-3:]: r for r in engine.requests}
    assert limits[" 16"].max_new_tokens == 24 and limits["100"].max_new_tokens == 150
    assert (engine.sampling.temperature, engine.sampling.top_p) == (0, 0.9)
    assert engine.sampling.top_k == 0


def test_mode_of_the_prompts():
    for mode, words in (("exact", "Think for 16"), ("max", "Think for maximum 16")):
        assert words in TOKENIZER.decode(run(mode=mode)[1].requests[0].token_ids)
    assert "Think" not in TOKENIZER.decode(run(mode="none")[1].requests[0].token_ids)


def test_seeds_depend_on_the_run_seed_and_not_on_the_company():
    seeds = {(r.token_ids, r.seed) for r in run()[1].requests}
    assert {(r.token_ids, r.seed) for r in run(problems=PROBLEMS[1:])[1].requests} < seeds
    one = {(r.token_ids, r.seed) for r in run("evaluate.budgets=[100]")[1].requests}
    assert one < seeds
    assert not {seed for _, seed in seeds} & {r.seed for r in run(seed=1)[1].requests}


def test_answers_are_graded_and_counted_in_tokens():
    wrong = Problem("x", "1+1=?", ("3",))
    result, _ = run(problems=[*PROBLEMS, wrong])
    lengths = [len(str(sum(map(int, p.question[:-2].split("+"))))) for p in [*PROBLEMS, wrong]]
    used = [4 + 4 + digits for digits in lengths]  # </think>, the box, its end and EOS count
    assert [cell["accuracy"] for cell in result["budgets"]] == [0.75, 0.75]
    assert result["overall"]["mean_tokens"] == pytest.approx(np.mean(used))
    assert sorted(result["used"]) == sorted(
        [b, n, int(i < 3)] for b in (16, 100) for i, n in enumerate(used) for _ in range(2)
    )


def test_thinking_tag_is_required_only_when_asked():
    for required, accuracy in ((True, 0.0), (False, 1.0)):
        result, _ = run(engine=FakeEngine(think_end=""), grader=Grader(required))
        assert result["overall"]["accuracy"] == accuracy


def test_progress_is_passed_on():
    calls = []
    run(on_progress=lambda *done: calls.append(done))
    assert calls == [(12, 12)]


# Figures --------------------------------------------------------------------------------------

ASKED = np.array([20, 10, 10, 20, 10, 20, 10, 20])
USED = np.array([20, 8, 12, 30, 10, 10, 14, 20])
RIGHT = np.array([1.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 1.0])


def test_figures_by_budget():
    ten, twenty = summary(ASKED, USED, RIGHT)["budgets"]
    assert ten == {
        "budget": 10,
        "samples": 4,
        "accuracy": 0.5,
        "mean_tokens": 11.0,
        "deviation": pytest.approx((2 + 2 + 0 + 4) / 4 / 10),
        "mean_deviation": pytest.approx(0.1),  # the paper's: 11 against 10
        "rmse": pytest.approx(math.sqrt((4 + 4 + 0 + 16) / 4)),
        "over_budget": 0.5,
    }
    assert twenty == {
        "budget": 20,
        "samples": 4,
        "accuracy": 0.75,
        "mean_tokens": 20.0,
        "deviation": pytest.approx((0 + 10 + 10 + 0) / 4 / 20),
        "mean_deviation": 0.0,  # errors cancel: this is why there are two
        "rmse": pytest.approx(math.sqrt(50)),
        "over_budget": 0.25,
    }


def test_overall_figures_are_means_over_budgets():
    result = summary(ASKED, USED, RIGHT)
    overall, cells = result["overall"], result["budgets"]
    for name in ("accuracy", "mean_tokens", "deviation", "mean_deviation", "rmse", "over_budget"):
        assert overall[name] == pytest.approx((cells[0][name] + cells[1][name]) / 2), name
    # Not over samples: a budget with more of them weighs no more.
    uneven = summary(ASKED[:3], USED[:3], RIGHT[:3])["overall"]
    assert uneven["accuracy"] == pytest.approx((1.0 + 0.5) / 2)


def test_correlations_over_all_samples():
    overall = summary(ASKED, USED, RIGHT)["overall"]
    # asked - 15 = ±5; used - 15.5 = 4.5, -7.5, -3.5, 14.5, -5.5, -5.5, -1.5, 4.5
    products = 4.5 + 7.5 + 3.5 + 14.5 + 5.5 - 5.5 + 1.5 + 4.5
    squares = sum(x * x for x in (4.5, 7.5, 3.5, 14.5, 5.5, 5.5, 1.5, 4.5))
    assert overall["correlation"] == pytest.approx(5 * products / math.sqrt(200 * squares))
    # ranks asked: 6.5 and 2.5; used: 6.5, 1, 4, 8, 2.5, 2.5, 5, 6.5
    products = 2 * (2.0 + 3.5 + 0.5 + 3.5 + 2.0 - 2.0 - 0.5 + 2.0)
    squares = sum(x * x for x in (2.0, 3.5, 0.5, 3.5, 2.0, 2.0, 0.5, 2.0))
    assert overall["rank_correlation"] == pytest.approx(products / math.sqrt(32 * squares))


def test_triples_and_plain_types():
    result = summary(ASKED[:2], USED[:2], RIGHT[:2])
    assert result["used"] == [[20, 20, 1], [10, 8, 0]]
    assert {type(x) for triple in result["used"] for x in triple} == {int}
    values = [*result["overall"].values(), *result["budgets"][0].values()]
    assert {type(x) for x in values} == {int, float}, "numpy's numbers are no JSON"


def test_ranks_with_ties():
    assert ranks(np.array([30, 10, 20])).tolist() == [3, 1, 2]
    assert ranks(np.array([5, 5, 1, 9, 5])).tolist() == [3, 3, 1, 5, 3]
    assert ranks(np.array([7, 7])).tolist() == [1.5, 1.5]


def test_correlation():
    up = np.array([1.0, 2.0, 3.0])
    assert correlation(up, 10 * up - 4) == pytest.approx(1)
    assert correlation(up, -up) == pytest.approx(-1)
    assert correlation(up, np.array([1.0, -2.0, 1.0])) == pytest.approx(0)
    assert correlation(up, np.ones(3)) == correlation(np.ones(3), up) == 0.0


def test_a_model_that_ignores_the_budget_correlates_with_nothing():
    overall = summary(ASKED, np.full(8, 15), RIGHT)["overall"]
    assert overall["correlation"] == overall["rank_correlation"] == 0.0
