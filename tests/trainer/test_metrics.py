"""Metrics by hand on small batches, and docs/metrics.md against what a real step reports."""

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from trainer_helpers import make_rollout

import kernels
from tests.helpers import tiny_trainer
from trainer import metrics
from trainer.config import BudgetSettings
from trainer.evaluate.budgets import summary
from trainer.grading import REASONS
from trainer.metrics import MicroBatch, Outcome
from trainer.model import ModelConfig
from trainer.packing import pack
from trainer.step import train_step
from trainer.types import Advantages

PAGE = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"
BUDGET = BudgetSettings(mode="exact", law="uniform", min=10, max=29, skip=None)


def advantages(length, advantage, correctness=None) -> Advantages:
    length, advantage = torch.tensor(length), torch.tensor(advantage)
    right = torch.zeros_like(length) if correctness is None else torch.tensor(correctness)
    return Advantages(right, length, right + length, advantage)


# Reward ---------------------------------------------------------------------------------------


def test_reward_metrics_by_hand():
    groups = [7, 7, 8, 8, 9, 9, 6, 6]
    rights = [1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0]
    reasons = ["correct", "correct", "wrong", "no_think", "correct", "timeout", "wrong", "wrong"]
    rollouts = [
        make_rollout(group=g, right=right, reason=reason)
        for g, right, reason in zip(groups, rights, reasons, strict=True)
    ]
    length = [-0.1, -0.3, -0.2, -0.2, 0.0, 0.0, 0.0, 0.0]
    found = metrics.reward_metrics(rollouts, advantages(length, [0.0] * 8, rights))
    assert found["reward/correctness"] == pytest.approx(3 / 8)
    assert found["reward/length"] == pytest.approx(-0.1)
    assert found["reward/mean"] == pytest.approx(3 / 8 - 0.1)
    shares = [found[f"group/{kind}"] for kind in ("all_right", "mixed", "all_wrong")]
    assert shares == [0.25, 0.25, 0.5]
    counts = {"correct": 3, "wrong": 3, "no_think": 1, "timeout": 1}
    assert {r: found[f"reason/{r}"] for r in REASONS} == {r: counts.get(r, 0) / 8 for r in REASONS}


def r2(length, advantage, groups=(0, 0, 0, 0)) -> float:
    rollouts = [make_rollout(group=g) for g in groups]
    return metrics.length_r2(rollouts, advantages(length, advantage))


def test_length_r2():
    length = [0.0, -0.1, -0.2, -0.3]
    assert r2(length, [1.5, 0.5, -0.5, -1.5]) == pytest.approx(1)  # all of it is length
    assert r2(length, [1.0, -1.0, -1.0, 1.0]) == pytest.approx(0, abs=1e-12)  # none of it
    assert r2(length, [0.0] * 4) == 0 == r2([-0.1] * 4, [1.0, -1.0, 1.0, -1.0])
    # advantage = length part + unrelated part of the same variance: half
    assert r2([1.0, 1.0, -1.0, -1.0], [2.0, 0.0, 0.0, -2.0]) == pytest.approx(0.5)


def test_length_r2_looks_inside_groups():
    """That long budgets cost more in all is no signal: an advantage has no such part."""
    length = [0.0, -0.1, -5.0, -5.1]
    assert r2(length, [1.0, -1.0, 1.0, -1.0], (0, 0, 1, 1)) == pytest.approx(1)
    assert r2(length, [1.0, -1.0, 1.0, -1.0]) < 0.01


# Length ---------------------------------------------------------------------------------------


def length_metrics(used, asked, think=None, truncated=None, settings=BUDGET) -> dict[str, float]:
    used = torch.tensor(used, dtype=torch.int32)
    think = used if think is None else torch.tensor(think, dtype=torch.int32)
    cut = torch.zeros(len(used), dtype=torch.bool) if truncated is None else torch.tensor(truncated)
    rollouts = [make_rollout(budget=budget) for budget in asked]
    lengths = kernels.Lengths(used, think, used - think, cut)
    return metrics.length_metrics(rollouts, lengths, settings)


def test_length_metrics_by_hand():
    found = length_metrics([5, 10, 30, 40], [10, 10, 20, 20], [3, 6, 26, 40], [False] * 3 + [True])
    assert found["length/mean"] == 21.25
    assert found["length/think"] == 18.75
    assert found["length/truncated"] == 0.25
    assert found["length/deviation"] == pytest.approx((0.5 + 0 + 0.5 + 1) / 4)
    assert found["length/over_budget"] == 0.5
    spread = 16.25**2 + 11.25**2 + 8.75**2 + 18.75**2
    covariance = 5 * (16.25 + 11.25 + 8.75 + 18.75)
    assert found["length/correlation"] == pytest.approx(covariance / math.sqrt(spread * 100))


def test_buckets_cover_the_range_and_include_their_ends():
    found = length_metrics([0] * 8, [10, 14, 15, 19, 20, 24, 25, 29])
    names = ["10-14", "15-19", "20-24", "25-29"]
    assert [k for k in found if "@" in k] == [f"length/deviation@{name}" for name in names]
    found = length_metrics([15, 20, 58], [10, 20, 29])
    assert found["length/deviation@10-14"] == 0.5
    assert found["length/deviation@20-24"] == 0
    assert found["length/deviation@25-29"] == 1
    assert "length/deviation@15-19" not in found


def test_buckets_of_a_narrow_range():
    narrow = replace(BUDGET, min=10, max=11)
    found = length_metrics([5, 22], [10, 11], settings=narrow)
    buckets = {key: value for key, value in found.items() if "@" in key}
    assert buckets == {"length/deviation@10-10": 0.5, "length/deviation@11-11": 1.0}


def test_without_budgets_nothing_is_compared_with_them():
    found = length_metrics([5, 9], [0, 0])
    assert found == {"length/mean": 7, "length/think": 7, "length/truncated": 0}


# Policy ---------------------------------------------------------------------------------------


def outcome(update, loss, *, tokens, clip=0.0, kl=0.0, old_kl=0.0, entropy=0.0, dev=0.0):
    values = {
        "clip_count": clip, "ratio_max_dev": dev, "kl_sum": kl, "old_kl_sum": old_kl,
        "entropy_sum": entropy, "tokens": float(tokens),
    }  # fmt: skip
    stats = kernels.PolicyStats(**{name: torch.tensor(value) for name, value in values.items()})
    return Outcome(update, torch.tensor(loss), stats)


def test_policy_metrics_are_means_over_tokens_not_over_micro_batches():
    found = metrics.policy_metrics(
        [
            outcome(0, 0.25, tokens=10, clip=1.0, kl=2.0, old_kl=0.5, entropy=30.0, dev=0.001),
            outcome(0, 0.5, tokens=30, clip=3.0, kl=0.0, old_kl=0.5, entropy=10.0, dev=0.002),
            outcome(1, -1.0, tokens=60, clip=6.0, kl=3.0, old_kl=3.0, entropy=60.0, dev=0.3),
        ]
    )
    assert found == {
        "policy/loss": pytest.approx(-0.25),
        "policy/kl": pytest.approx(0.05),
        "policy/old_kl": pytest.approx(0.04),
        "policy/entropy": pytest.approx(1.0),
        "policy/clip_fraction": pytest.approx(0.1),
        "policy/ratio_dev_first": pytest.approx(0.002),
        "policy/ratio_dev_max": pytest.approx(0.3),
    }


def test_policy_metrics_with_nothing_trained_on():
    assert metrics.policy_metrics([]) == {} == metrics.gap_metrics([], [])
    found = metrics.policy_metrics([outcome(1, 0.0, tokens=0, dev=0.25)])  # first update dropped
    assert found["policy/ratio_dev_first"] == 0 and found["policy/ratio_dev_max"] == 0.25
    assert all(math.isfinite(value) for value in found.values())


def micro_batch(samples, counts, old) -> MicroBatch:
    responses = [[7] * n for n in counts]
    batch = pack([[1]] * len(samples), responses, torch.ones(len(samples)), samples)
    return MicroBatch(batch, torch.tensor(old), None)


def test_gap_pairs_each_token_with_its_own():
    """Micro-batches hold samples in another order than the rollouts, and not always all of them."""
    rollouts = [make_rollout(logprobs=lp) for lp in ((-1.0, -2.0), (-3.0,), (-4.0, -5.0), (-9.0,))]
    same = [
        micro_batch([2, 0], [2, 2], [-4.0, -5.0, -1.0, -2.0]),
        micro_batch([1], [1], [-3.0]),
    ]
    assert set(metrics.gap_metrics(rollouts, same).values()) == {0.0}
    gap = [0.5, 0.0, -0.25, 0.0, 0.0]
    moved = [
        micro_batch([2, 0], [2, 2], [-3.5, -5.0, -1.25, -2.0]),
        micro_batch([1], [1], [-3.0]),
    ]
    assert metrics.gap_metrics(rollouts, moved) == {
        "policy/rollout_gap_max": 0.5,
        "policy/rollout_gap_mean": pytest.approx(0.15),
        "policy/rollout_gap_k3": pytest.approx(sum(math.exp(g) - g - 1 for g in gap) / 5),
    }


# Packing and work ------------------------------------------------------------------------------


def test_packing_metrics_by_hand():
    model = ModelConfig("llama", 8, 2, 2, 1, 1, 1, 2)  # a token 2 (16 + 12), a pair 8, a row 32
    one, two, three = (micro_batch([0], [n], [0.0] * n) for n in (3, 2, 1))
    tokens = 4 + 3 + 2  # each with a prompt of one
    found = metrics.packing_metrics([[one, two], [], [three]], 10, model)
    assert found.pop("packing/fill") == pytest.approx(tokens / 30)
    costs = 56 * 4 + 8 * 10 + 32 * 3, 56 * 3 + 8 * 6 + 32 * 2
    assert found.pop("packing/imbalance") == pytest.approx(2 * costs[0] / sum(costs) - 1)
    assert found == {"packing/micro_batches": 3, "packing/padding": 0.0}
    padded = replace(one.batch, input_ids=torch.zeros(5, dtype=torch.int64))
    found = metrics.packing_metrics([[replace(one, batch=padded)]], 10, model)
    assert found["packing/padding"] == pytest.approx(1 / 5)
    assert metrics.packing_metrics([[], []], 10, model) == {}


def test_flops_of_a_step_by_hand():
    model = ModelConfig("llama", 8, 2, 2, 1, 1, 1, 2)
    rollouts = [make_rollout(logprobs=(-1.0,) * n) for n in (3, 1)]  # on one prompt of 2
    micro = replace(micro_batch([0], [3], [0.0] * 3), passes=2)
    found = metrics.step_flops(rollouts, [micro], model)
    once = 56 * 4 + 8 * 10 + 32 * 3
    pairs = 3 + (3 * 2 + 6) + (1 * 2 + 1)
    drawn = 56 * (2 + 3 + 1) + 8 * pairs + 32 * 4
    assert found == {"rollout": drawn, "old_logprob": 2 * once, "update": 3 * once}


# Time -----------------------------------------------------------------------------------------


def test_clock_adds_up_what_a_phase_takes(monkeypatch):
    now = iter([10.0, 12.0, 20.0, 20.5, 30.0, 31.0])
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: next(now))
    clock = metrics.Clock()
    for phase in ("rollout", "update", "rollout"):
        with clock(phase):
            pass
    assert dict(clock.seconds()) == {"rollout": 3.0, "update": 0.5}


def test_speed():
    seconds = {"rollout": 2.0, "old_logprob": 1.0, "update": 4.0}
    tokens, flops = {"rollout": 100, "update": 600}, {"rollout": 40, "update": 80}
    found = metrics.speed(seconds, tokens, flops, 100.0)
    assert seconds == {"rollout": 2.0, "old_logprob": 1.0, "update": 4.0}, "left as it was"
    assert found["total"] == 7.0
    assert found["speed/rollout_tokens_per_s"] == 50
    assert found["speed/update_tokens_per_s"] == 150
    assert (found["mfu/rollout"], found["mfu/update"]) == (0.2, 0.2)
    assert found["mfu/total"] == pytest.approx(120 / 7 / 100)
    assert 0.05 < found["memory/peak_gib"] < 1000


# docs/metrics.md ------------------------------------------------------------------------------


def documented(heading: str) -> list[list[str]]:
    """The rows of the tables under a `## heading`, as cells; the first is a name in backticks."""
    section = PAGE.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [
        line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| `")
    ]
    names = [name.strip("`") for name, *_ in rows]
    assert len(names) == len(set(names)) and all(row[-1].strip() for row in rows)
    return [[name, *row[1:]] for name, row in zip(names, rows, strict=True)]


def names_of(heading: str) -> set[str]:
    return {name for name, *_ in documented(heading)}


def test_every_key_of_a_step_is_documented_and_no_other(tiny_base):
    stats = train_step(tiny_trainer(tiny_base))
    keys = {re.sub(r"@\d+-\d+$", "@LOW-HIGH", key) for key in stats.metrics}
    assert keys == names_of("Of a step: `metrics`")
    timing = {key if "/" in key else f"seconds/{key}" for key in stats.seconds}
    assert timing | {"memory/cuda_peak_gib"} == names_of("Of a step: `timing`")


def test_every_key_of_an_evaluation_is_documented_and_no_other():
    values = torch.tensor([10, 20]).numpy()
    result = summary(values, values, values)
    where = {name: of for name, of, _ in documented("Of an evaluation")}
    assert set(where.values()) == {"both", "budget", "overall"}
    assert set(result["overall"]) == {name for name, of in where.items() if of != "budget"}
    assert {*result["budgets"][0]} - {"budget"} == {n for n, of in where.items() if of != "overall"}
