"""The tables of docs/results.md, from rows made by hand."""

from trainer.results.claims import Claim
from trainer.results.tables import (
    ablation_table,
    between_table,
    budget_table,
    claim_table,
    seed_table,
)


def row(budget, right, used):
    return {"budget": budget, "pass1": right, "mean_tokens": used, "deviation": 0.02, "over": 0.5,
            "rmse": 2.0, "correlation": 0.99 if budget else None}  # fmt: skip


def methods(right):
    free, asked = [row(0, 0.75, 61.0)], [row(20, 0.1, 24.0), row(72, 0.5, 60.0)]
    l1 = [row(20, right, 20.0 + 10 * right), row(72, 0.9, 72.0)]
    baselines = {"base": free, "base_prompted": asked, "truncate": asked, "s1": asked}
    between = {"l1_exact_between": l1, "l1_max_between": l1}
    return {**baselines, "l1_exact": l1, "l1_max": l1, **between}


def claim(number, met):
    return Claim(number, f"text {number}", met, f"figures {number}")


def test_a_claim_is_shown_with_the_verdict_of_every_seed():
    text = claim_table([[claim(1, True), claim(2, True)], [claim(1, True), claim(2, False)]])
    assert "| 1 | text 1 | **2 of 2** | met | met |" in text
    assert "| 2 | text 2 | **1 of 2** | met | **not met** |" in text
    assert "- 2, seed 1: figures 2" in text


def test_methods_against_budgets_are_means_over_seeds():
    text = budget_table([methods(0.2), methods(0.4)])
    assert "| **L1-Exact** | 30.0% (20.0% to 40.0%), 23.0 | 90.0%, 72.0 |" in text
    assert "| base model, S1 budget forcing | 10.0%, 24.0 | 50.0%, 60.0 |" in text
    assert "without a budget: 75.0%, 61.0" in text and "2 training seeds" in text
    assert "| **L1-Exact** | 20.0%, 22.0 | 90.0%, 72.0 |" in budget_table([methods(0.2)])


def test_the_spread_needs_seeds():
    assert seed_table([methods(0.2)]) == ""
    text = seed_table([methods(0.2), methods(0.4)])
    assert "| 20 | 23.0 (22.0 to 24.0) | 30.0% (20.0% to 40.0%) | 2.0% |" in text


def test_an_ablation_stands_beside_every_seed():
    main = [methods(right)["l1_exact"] for right in (0.2, 0.4)]
    assert ablation_table(main, {}) == ""
    text = ablation_table(main, {"reward=sigmoid": main[0]})
    assert "| as it is, seed 1 | 2.0% | 2.0 | 0.990 | 40.0% | 90.0% |" in text
    assert "| `reward=sigmoid` | 2.0% | 2.0 | 0.990 | 20.0% | 90.0% |" in text


def test_other_budgets_show_what_is_over_the_limit():
    text = between_table([methods(0.2), methods(0.4)])
    assert "| **L1-Max** | 30.0% (20.0% to 40.0%), 23.0 | 90.0%, 72.0 |" in text
    assert text.endswith("| L1-Max, over | 50.0% | 50.0% |")
