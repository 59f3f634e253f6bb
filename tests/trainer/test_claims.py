"""The six claims: each at its edge, from rows made by hand; and the plan behind them."""

import itertools
import random
from dataclasses import replace
from pathlib import Path

import pytest

from trainer.config import ConfigError
from trainer.embedded.chains import Line, closing
from trainer.embedded.outside import JUDGED
from trainer.embedded.task import NUMBERS, TERMS
from trainer.evaluate.settings import read_settings
from trainer.results import claims
from trainer.results.claims import (
    accuracy_at,
    beats_s1,
    hits_the_budget,
    holds_outside,
    matches_the_base,
    monotone,
    rises,
    stays_within,
)
from trainer.results.plan import (
    ABLATIONS,
    BETWEEN,
    BUDGETS,
    SKIP,
    Plan,
    ablation_stages,
    base_stages,
    evaluation_stages,
    training_stages,
)

PLAN = Plan(Path("r"), "embedded", 500, 2, 1, False, False, ("train.steps=3",))


def rows(accuracies, *, tokens=BUDGETS, half=0.02, **more):
    return [
        {"budget": budget, "pass1": a, "pass1_low": a - half, "pass1_high": a + half,
         "mean_tokens": used, "deviation": 0.03, "sample_deviation": 0.04, "rmse": 2.0,
         "correlation": 0.98, "over": 0.03, **more}
        for budget, a, used in zip(BUDGETS, accuracies, tokens, strict=True)
    ]  # fmt: skip


GOOD = rows([0.3, 0.5, 0.7, 0.8])


def test_hitting_the_budget():
    assert hits_the_budget(GOOD).met
    assert not hits_the_budget(rows([0.5] * 4, deviation=0.031)).met
    assert not hits_the_budget(rows([0.5] * 4, correlation=0.979)).met
    assert "RMSE 2.0" in hits_the_budget(GOOD).evidence


def test_rising():
    assert rises(GOOD).met
    assert rises(rows([0.3, 0.5, 0.49, 0.8])).met  # within the interval of what went before
    assert not rises(rows([0.3, 0.5, 0.47, 0.8])).met
    assert not rises(rows([0.3, 0.3, 0.4, 0.44])).met  # 14 points
    # A slow slide, each step within the interval of the one before, is no rise.
    assert not monotone(rows([0.50, 0.49, 0.48, 0.47]))


def test_accuracy_at_a_length_between_budgets():
    assert accuracy_at(GOOD, sum(BUDGETS[:2]) / 2) == pytest.approx(0.4)
    assert accuracy_at(GOOD, BUDGETS[0] / 2) == pytest.approx(0.15)  # from (0, 0)
    assert accuracy_at(GOOD, 500) == pytest.approx(0.8)


def test_against_s1_at_equal_tokens():
    assert beats_s1(GOOD, rows([0.1, 0.3, 0.7, 0.8])).met
    assert beats_s1(GOOD, rows([0.15, 0.25, 0.6, 0.7])).met  # twice
    assert not beats_s1(GOOD, rows([0.1, 0.31, 0.6, 0.7])).met
    assert not beats_s1(GOOD, rows([0.1, 0.3, 0.71, 0.8])).met  # worse somewhere
    assert not beats_s1(rows([0.0] * 4), rows([0.0] * 4)).met  # twice nothing is nothing
    # Tokens used count, not those asked for: S1 that uses less is compared with less.
    assert not beats_s1(GOOD, rows([0.1, 0.3, 0.6, 0.7], tokens=(8, 16, 32, 56))).met


def test_staying_within():
    best = rows([0.29, 0.49, 0.70, 0.80])
    assert stays_within(best, GOOD, (30.0, 40.0)).met
    assert not stays_within(best, GOOD, (40.0, 30.0)).met
    assert not stays_within(rows([0.28, 0.5, 0.7, 0.8]), GOOD, (30.0, 40.0)).met
    assert not stays_within(rows([0.3, 0.5, 0.7, 0.8], over=0.031), GOOD, (30.0, 40.0)).met


def test_the_base_at_its_own_length():
    assert matches_the_base(GOOD[1], GOOD[1]).met
    assert not matches_the_base(GOOD[0], GOOD[1]).met


def test_outside_training():
    good = {f"l1_exact:{name}": GOOD for name in JUDGED}
    assert holds_outside(good).met
    for accuracies in ([0.3] * 4, [0.3, 0.2, 0.7, 0.8]):  # no rise; a dip
        assert not holds_outside({**good, f"l1_exact:{JUDGED[1]}": rows(accuracies)}).met
    assert not holds_outside({f"l1_exact:{JUDGED[0]}": GOOD}).met  # one is missing
    shown = holds_outside({**good, "l1_exact:embedded_long": rows([0.3, 0.2, 0.1, 0.8])})
    assert shown.met and "embedded_long (shown, not judged): deviation 3.0%" in shown.evidence


def test_all_six_are_judged():
    names = ["base", "s1", "l1_exact", "l1_max", "l1_exact_at_base"]
    names += [f"l1_exact:{name}" for name in JUDGED]
    methods = dict.fromkeys(names, GOOD)
    found = claims.judge(methods, (1.0, 2.0))
    assert [claim.number for claim in found] == [1, 2, 3, 4, 5, 6]
    assert [claim.met for claim in found] == [True, True, False, True, True, True]


# The plan -------------------------------------------------------------------------------------


def test_training_never_draws_what_is_skipped():
    plan = replace(PLAN, skip=(20, 30))
    for stage in training_stages(plan, 0).values():
        assert "budget.skip=[20,30]" in stage.arguments
    assert set(SKIP) & set(BUDGETS) and set(SKIP) <= {*BUDGETS, *BETWEEN}  # so it is evaluated
    for budgets in ((10, 20, 30), (10, 30, 20, 40), (10, 10, 20, 30), (10, 20, 30, 40, 50)):
        with pytest.raises(ConfigError, match="--budgets: expected four, ascending"):
            replace(PLAN, budgets=budgets)


def whole_chain(numbers):
    """Tokens of a chain that adds number by number."""
    sums = list(itertools.accumulate(numbers))
    lines = [Line(a, [b], a + b) for a, b in zip(sums, numbers[1:], strict=False)]
    return sum(len(line.pieces(line.result)) for line in lines) + len(closing(sums[-1]))


def test_no_judged_budget_is_at_the_edge_of_a_whole_chain():
    assert whole_chain([3, 9, 7, 4]) == len("3+9=12|12+7=19|19+4=23|") + 6
    edges = set()
    for count in range(TERMS[0], TERMS[1] + 1):
        rng = random.Random(count)
        lengths = [whole_chain([rng.randint(*NUMBERS) for _ in range(count)]) for _ in range(500)]
        for budget in (*BUDGETS, 26):
            fit = sum(length <= budget for length in lengths) / len(lengths)
            edges |= {budget} if 0.02 < fit < 0.98 else set()
    assert edges == {26}


def test_every_evaluation_is_one_that_the_command_takes():
    stages = [*base_stages(PLAN).values(), *evaluation_stages(PLAN, 1, 41.6).values()]
    for stage in stages:
        settings = read_settings(stage.arguments)
        assert (settings.problems, settings.n, settings.scale) == (500, 2, "embedded")
        assert settings.out == str(stage.folder)
    assert len({stage.folder for stage in stages}) == len(stages)
    (at_base,) = (s for s in stages if s.folder.name.endswith("at_base"))
    assert read_settings(at_base.arguments).budgets == (42,)


def test_l1_max_starts_from_the_l1_exact_of_its_seed():
    exact, best = training_stages(PLAN, 2).values()
    assert "+experiment=l1_max" in best.arguments
    assert f"model.path={exact.folder}" in best.arguments
    assert {"seed=2", "train.steps=3"} <= set(exact.arguments) & set(best.arguments)


def test_an_ablation_changes_one_thing():
    exact = training_stages(PLAN, 0)["l1_exact"]
    for name, changes in ABLATIONS.items():
        stage = ablation_stages(PLAN, name)["train"]
        same = replace(stage, folder=exact.folder)
        assert set(same.arguments) - set(exact.arguments) == {*changes, f"dir={stage.folder}"}
