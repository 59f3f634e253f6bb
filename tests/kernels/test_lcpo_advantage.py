"""LCPO rewards against the paper's numbers, advantages against a loop over groups."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from three_way import assert_guards, error, guarded

import kernels
from kernels import RewardSpec
from kernels.cpp_impl.lcpo_advantage import _lcpo_advantage
from kernels.ops.lcpo_advantage import _op

pytestmark = pytest.mark.usefixtures("backend")  # all of them on both backends

NONE, EXACT, MAX = 0, 1, 2
PAPER = RewardSpec("linear", alpha_exact=0.0003, alpha_max=0.0003, delta=0.5)
RELEASED = RewardSpec("linear", alpha_exact=1 / 3000, alpha_max=1 / 1000, delta=0.5)
MARGIN = RewardSpec("linear", alpha_exact=0.6, alpha_max=0.6, delta=-0.6)
SIGMOID = RewardSpec("sigmoid", alpha_exact=0.01, alpha_max=0.01, delta=0.0)


def ints(values):
    return torch.tensor(values, dtype=torch.int32)


def one(reward, correct, n_y, n_gold, mode):
    """Reward and length term of a single sample."""
    terms = kernels.lcpo_advantage(
        torch.tensor([float(correct)]),
        ints([n_y]),
        ints([n_gold]),
        ints([mode]),
        ints([0]),
        1,
        reward=reward,
    )
    assert terms.advantage.item() == 0  # a group of one
    assert (terms.correctness + terms.length).item() == pytest.approx(terms.reward.item(), abs=1e-6)
    return terms.reward.item()


@pytest.mark.parametrize(
    ("reward", "mode", "correct", "n_y", "expected"),
    [
        (PAPER, MAX, 1, 500, 0.65),
        (PAPER, MAX, 1, 1000, 0.5),
        (PAPER, MAX, 1, 1500, 0.35),
        (PAPER, MAX, 1, 3000, 0.0),
        (PAPER, MAX, 0, 500, 0.0),
        (PAPER, EXACT, 1, 900, 0.97),
        (PAPER, EXACT, 0, 900, -0.03),
        (PAPER, EXACT, 1, 1100, 0.97),
        (PAPER, EXACT, 1, 1000, 1.0),
        (PAPER, NONE, 1, 17, 1.0),
        (PAPER, NONE, 0, 17, 0.0),
        (RELEASED, MAX, 1, 1200, 0.3),
        (RELEASED, MAX, 1, 400, 1.0),
        (RELEASED, MAX, 1, 1500, 0.0),
        (RELEASED, MAX, 0, 400, 0.0),
        (RELEASED, EXACT, 1, 700, 0.9),
        (RELEASED, EXACT, 0, 1300, -0.1),
        (MARGIN, MAX, 1, 999, 0.0),  # within the budget, and paid nothing: a margin of one token
        (MARGIN, MAX, 1, 998, 0.6),
        (MARGIN, MAX, 1, 997, 1.0),
        (SIGMOID, EXACT, 1, 1000, 1.5),
        (SIGMOID, EXACT, 0, 900, 0.2689414),  # σ(−1)
        (SIGMOID, MAX, 1, 1000, 1.6),  # σ(0) + 0.1: at the budget is not over it
        (SIGMOID, MAX, 1, 1001, 1.4975),  # σ(−0.01)
        (SIGMOID, MAX, 0, 100, 1.0),  # σ(9) + 0.1, clipped
    ],
)
def test_golden_rewards(reward, mode, correct, n_y, expected):
    assert one(reward, correct, n_y, 1000, mode) == pytest.approx(expected, abs=1e-6)


LENGTHS = st.integers(0, 10_000)


# The backend is set once for all examples, which is what is wanted.
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(n_y=LENGTHS, n_gold=LENGTHS, correct=st.sampled_from([0, 1]))
def test_reward_bounds_and_monotonicity(n_y, n_gold, correct):
    for reward in (PAPER, RELEASED, SIGMOID):
        low, high = (0, 1) if reward.kind == "linear" else (correct, 1 + correct)
        assert low <= one(reward, correct, n_y, n_gold, MAX) <= high
        # a token further from the budget never pays in exact, nor a longer answer in max mode
        further = n_y + 1 if n_y >= n_gold else max(n_y - 1, 0)
        exact = [one(reward, correct, n, n_gold, EXACT) for n in (n_y, further)]
        assert exact[0] >= exact[1]
        at_most = [one(reward, correct, n, n_gold, MAX) for n in (n_y, n_y + 1)]
        assert at_most[0] >= at_most[1]


def advantage_of(rewards, group, num_groups, estimator):
    """Advantages of arbitrary rewards: mode none passes `correct` through as the reward."""
    zeros = torch.zeros_like(group)
    terms = kernels.lcpo_advantage(
        rewards, zeros, zeros, zeros, group, num_groups, reward=PAPER, estimator=estimator
    )
    assert terms.reward.equal(rewards) and terms.length.eq(0).all()
    return terms.advantage


def by_loop(rewards, group, estimator):
    out = torch.zeros_like(rewards)
    for g in group.unique():
        members = group == g
        r = rewards[members]
        n = len(r)
        if n == 1:
            continue
        if estimator == "rloo":
            out[members] = r - (r.sum() - r) / (n - 1)
        else:
            scale = r.std() + 1e-6 if estimator == "grpo" else 1.0
            out[members] = (r - r.mean()) / scale
    return out


@pytest.mark.parametrize("estimator", ["grpo", "dr_grpo", "rloo"])
def test_ragged_interleaved_groups(estimator):
    generator = torch.Generator().manual_seed(0)
    # sizes 1 and 2 (the smallest with a std), an empty group (index 3), and L1's 16
    group = ints([0] + [1] * 2 + [2] * 16 + [4] * 5)
    group = group[torch.randperm(len(group), generator=generator)]
    rewards = torch.randn(len(group), generator=generator)
    got = advantage_of(rewards, group, 5, estimator)
    assert error(got, by_loop(rewards.double(), group, estimator)) < 1e-6
    order = torch.randperm(len(group), generator=generator)
    shuffled = advantage_of(rewards[order], group[order], 5, estimator)
    assert error(shuffled, got[order]) < 1e-6


@pytest.mark.parametrize("estimator", ["grpo", "dr_grpo", "rloo"])
def test_equal_rewards_give_exactly_zero(estimator):
    # The float32 mean of sixteen 0.1 is not 0.1, and the std would blow the difference up.
    rewards = torch.full((16,), 0.1)
    assert advantage_of(rewards, ints([0] * 16), 1, estimator).eq(0).all()


def test_std_of_rewards_that_differ_by_one_token():
    # All right, lengths one token apart: rewards differ by α = 3e-4 at a mean near 1. One-pass
    # E[r²] − E[r]² in float32 would lose the variance (9e-8) in the rounding of 1 (6e-8).
    n_y = torch.arange(990, 1006, dtype=torch.int32)
    full = torch.full_like(n_y, 1000)
    ones = torch.ones(16)
    zeros = torch.zeros_like(n_y)
    terms = kernels.lcpo_advantage(ones, n_y, full, zeros + EXACT, zeros, 1, reward=PAPER)
    rewards = 1 - 0.0003 * (n_y - 1000).abs().double()
    want = (rewards - rewards.mean()) / (rewards.std() + 1e-6)
    assert error(terms.advantage, want) < 1e-3
    assert terms.advantage.mean().abs() < 1e-6


def test_rows_follow_their_own_mode():
    modes = ints([NONE, EXACT, MAX])
    terms = kernels.lcpo_advantage(
        torch.ones(3), ints([900] * 3), ints([1000] * 3), modes, ints([0] * 3), 1, reward=PAPER
    )
    assert error(terms.reward, torch.tensor([1.0, 0.97, 0.53])) < 1e-6
    assert error(terms.length, torch.tensor([0.0, -0.03, -0.47])) < 1e-6


def test_no_samples():
    empty = ints([])
    terms = kernels.lcpo_advantage(torch.zeros(0), empty, empty, empty, empty, 0, reward=PAPER)
    assert all(x.shape == (0,) for x in terms)


@pytest.mark.parametrize("reward", [PAPER, RELEASED, SIGMOID])
@pytest.mark.parametrize("estimator", ["grpo", "dr_grpo", "rloo"])
def test_backends_agree(cpp, reward, estimator):
    generator = torch.Generator().manual_seed(0)

    def draw(high):
        return torch.randint(0, high, (200,), generator=generator).int()

    arguments = (draw(2).float(), draw(4000), draw(4000), draw(3), draw(23), 23)
    found = []
    for name in ("torch", "cpp"):
        with kernels.override(f"lcpo_advantage={name}"):
            terms = kernels.lcpo_advantage(*arguments, reward=reward, estimator=estimator)
        found.append(terms)
    for name, a, b in zip(terms._fields, *found, strict=True):
        assert error(a, b) < 2e-6, name
    assert reward.kind == "sigmoid" or found[0].reward.equal(found[1].reward)


def test_cpp_writes_all_its_outputs_and_nothing_else(cpp):
    correct, values = torch.ones(5), ints([0, 1, 1, 0, 1])
    outputs = [guarded(5) for _ in range(3)]
    _lcpo_advantage(
        *(x.data_ptr() for x in (correct, values, values, values, values)),
        *(5, 2, False, 0.1, 0.1, 0.5, 0, 1e-6),
        *(inside.data_ptr() for _, inside in outputs),
    )
    for whole, _ in outputs:
        assert_guards(whole)


def test_opcheck():
    group = ints([0, 1, 0, 1])
    arguments = (
        torch.ones(4),
        group,
        group,
        group,
        group,
        2,
        "linear",
        0.1,
        0.1,
        0.5,
        "grpo",
        1e-6,
    )
    torch.library.opcheck(_op, arguments)


def test_refusals():
    zeros = ints([0, 0])

    def call(correct=(1.0, 0.0), mode=zeros, group=zeros, estimator="grpo", n_y=zeros):
        kernels.lcpo_advantage(
            torch.tensor(correct), n_y, zeros, mode, group, 1, reward=PAPER, estimator=estimator
        )

    with pytest.raises(ValueError, match=r"group holds 1, expected values in \[0, 1\)"):
        call(group=ints([0, 1]))
    with pytest.raises(ValueError, match="mode holds 3"):
        call(mode=ints([3, 0]))
    with pytest.raises(ValueError, match="correct holds nan"):
        call(correct=(1.0, float("nan")))
    with pytest.raises(ValueError, match="unknown advantage estimator 'gae'"):
        call(estimator="gae")
    with pytest.raises(ValueError, match=r"n_y is torch\.int64"):
        call(n_y=zeros.long())
    with pytest.raises(ValueError, match="unknown reward kind 'cubic'"):
        RewardSpec("cubic", 0.1, 0.1, 0.5)
    with pytest.raises(ValueError, match="alpha_exact must be finite, got nan"):
        RewardSpec("linear", float("nan"), 0.1, 0.5)
