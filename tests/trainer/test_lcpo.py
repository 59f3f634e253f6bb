"""The presets of conf/reward give the rewards of the paper and its code, group by group."""

import math
from dataclasses import replace

import pytest
import torch
from trainer_helpers import make_config, make_rollout

from trainer import lcpo
from trainer.types import Problem


def terms(rollouts, n_y, preset="paper", scale="paper", estimator="grpo"):
    config = make_config(f"scale={scale}", "+experiment=l1_exact", f"reward={preset}")
    algorithm = replace(config.algorithm, estimator=estimator)
    lengths = torch.tensor(n_y, dtype=torch.int32)
    return lcpo.advantages(rollouts, lengths, config.reward, algorithm)


def rewards(mode, cases, preset="paper", budget=1000, scale="paper") -> list[float]:
    """Rewards of [(right, n_y), ...], all of one group."""
    rollouts = [make_rollout(mode=mode, budget=budget, right=right) for right, _ in cases]
    return terms(rollouts, [n_y for _, n_y in cases], preset, scale).reward.tolist()


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_paper_max_golden_values():
    cases = [(1.0, 500), (1.0, 1000), (1.0, 1500), (1.0, 3000), (0.0, 500), (0.0, 1500)]
    assert rewards("max", cases) == pytest.approx([0.65, 0.5, 0.35, 0, 0, 0], abs=1e-6)


def test_paper_exact_golden_values():
    cases = [(1.0, 900), (0.0, 900), (1.0, 1100), (1.0, 1000), (0.0, 4096)]
    assert rewards("exact", cases) == pytest.approx([0.97, -0.03, 0.97, 1, -0.9288], abs=1e-6)


def test_released_preset():
    """1[correct] - |n_gold - n_y|/3000 and 1[correct] clip(0.5 + (n_gold - n_y)/1000, 0, 1)."""
    cases = [(1.0, 400), (0.0, 1600), (1.0, 1000)]
    assert rewards("exact", cases, "released") == pytest.approx([0.8, -0.2, 1], abs=1e-6)
    cases = [(1.0, 400), (1.0, 700), (1.0, 1200), (1.0, 1600), (0.0, 700)]
    assert rewards("max", cases, "released") == pytest.approx([1, 0.8, 0.3, 0, 0], abs=1e-6)


def test_sigmoid_preset():
    cases = [(1.0, 400), (0.0, 1600), (1.0, 1000)]
    far = sigmoid(-0.0003 * 600)
    assert rewards("exact", cases, "sigmoid") == pytest.approx([1 + far, far, 1.5], abs=1e-6)
    cases = [(1.0, 400), (1.0, 1000), (0.0, 1001), (0.0, 1600)]
    expected = [1.1 + sigmoid(0.18), 1.6, sigmoid(-0.0003), sigmoid(-0.18)]
    assert rewards("max", cases, "sigmoid") == pytest.approx(expected, abs=1e-6)
    assert rewards("max", [(1.0, 1), (1.0, 2)], "sigmoid", budget=20000)[0] == 2  # clipped to 1


def test_without_a_budget_only_the_answer_counts():
    assert rewards("none", [(1.0, 900), (0.0, 5)], budget=0) == [1, 0]


def test_embedded_scale_prices_a_token_at_six_tenths():
    """0.0003 * 2000 = 0.6: two tokens too many cost more than a right answer is worth."""
    exact = rewards("exact", [(1.0, 20), (0.0, 8)], budget=12, scale="embedded")
    assert exact == pytest.approx([1 - 8 * 0.6, -4 * 0.6], abs=1e-5)
    near = rewards("max", [(1.0, 50), (1.0, 51)], budget=50, scale="embedded")
    assert near == pytest.approx([0.5, 0], abs=1e-5)


def test_terms_add_up_and_are_float32():
    rollouts = [
        make_rollout(mode=m, budget=1000, right=r) for m in ("exact", "max") for r in (1, 0)
    ]
    found = terms(rollouts, [900, 900, 500, 500])
    torch.testing.assert_close(found.correctness + found.length, found.reward)
    assert found.correctness.tolist() == [1, 0, 1, 0]
    for name in ("correctness", "length", "reward", "advantage"):
        assert getattr(found, name).dtype == torch.float32, name


def test_grpo_advantage_by_hand():
    rollouts = [make_rollout(budget=1000, right=r) for r in (1.0, 1.0, 0.0, 0.0)]
    found = terms(rollouts, [1000, 900, 1000, 800])
    reward = [1.0, 0.97, 0.0, -0.06]
    mean = sum(reward) / 4
    std = math.sqrt(sum((r - mean) ** 2 for r in reward) / 3)  # unbiased
    expected = [(r - mean) / (std + 1e-6) for r in reward]
    assert found.advantage.tolist() == pytest.approx(expected, abs=1e-5)


def test_other_estimators_by_hand():
    rollouts = [make_rollout(right=r) for r in (1.0, 0.0, 0.0)]
    found = terms(rollouts, [10, 10, 10], estimator="dr_grpo").advantage.tolist()
    assert found == pytest.approx([2 / 3, -1 / 3, -1 / 3])
    found = terms(rollouts, [10, 10, 10], estimator="rloo").advantage.tolist()
    assert found == pytest.approx([1, -0.5, -0.5])


def test_a_group_all_wrong_still_follows_length_at_full_strength():
    """Alpha cancels inside the group: recipe, detail 4."""
    rollouts = [make_rollout(budget=1000, right=0.0) for _ in range(3)]
    found = terms(rollouts, [1000, 999, 998]).advantage.tolist()
    assert found == pytest.approx([1, 0, -1], abs=0.01)


def test_groups_are_keyed_by_id_and_not_by_text():
    """One problem met twice, the same budget even: its samples are compared within each group."""
    rights = {5: (1.0, 0.0), 2**40: (0.0, 0.0)}  # ids grow with the epoch and may be large
    rollouts = [make_rollout(group=g, right=r) for g, pair in rights.items() for r in pair]
    found = terms(rollouts, [10] * 4, estimator="dr_grpo").advantage.tolist()
    assert found == pytest.approx([0.5, -0.5, 0, 0])
    # Two problems under one id are one group.
    other = Problem("p-1", "2+2=?", ("4",))
    rollouts = [make_rollout(right=1.0), make_rollout(right=0.0, problem=other)]
    assert terms(rollouts, [10] * 2, estimator="dr_grpo").advantage.tolist() == [0.5, -0.5]


def test_order_of_rollouts_does_not_matter():
    groups, rights, n_y = [9, 4, 9, 4, 9, 4], [1.0, 0.0, 0.0, 0.0, 1.0, 1.0], [9, 12, 30, 11, 14, 2]
    rollouts = [make_rollout(group=g, right=r) for g, r in zip(groups, rights, strict=True)]
    mixed = terms(rollouts, n_y).advantage
    order = sorted(range(6), key=groups.__getitem__)
    found = terms([rollouts[i] for i in order], [n_y[i] for i in order]).advantage
    torch.testing.assert_close(found, mixed[order])


def test_dual_rows_use_their_own_mode():
    modes = ["exact", "max", "max", "exact", "none"]
    rollouts = [
        make_rollout(group=i, mode=mode, budget=1000 if mode != "none" else 0, right=right)
        for i, (mode, right) in enumerate(zip(modes, (1.0, 1.0, 0.0, 0.0, 1.0), strict=True))
    ]
    found = terms(rollouts, [900, 900, 900, 900, 900])
    assert found.reward.tolist() == pytest.approx([0.97, 0.53, 0, -0.03, 1], abs=1e-6)


def test_each_row_has_its_own_budget():
    rollouts = [make_rollout(group=i, budget=b) for i, b in enumerate((800, 900, 1000))]
    found = terms(rollouts, [900, 900, 900]).reward.tolist()
    assert found == pytest.approx([0.97, 1, 0.97], abs=1e-6)


def test_reward_spec_scales_both_alphas_and_nothing_else():
    settings = make_config("scale=embedded", "reward=released", "reward.alpha_factor=2").reward
    spec = lcpo.reward_spec(settings)
    assert (spec.kind, spec.delta) == ("linear", 0.5)
    assert (spec.alpha_exact, spec.alpha_max) == (pytest.approx(2 / 3000), 0.002)
