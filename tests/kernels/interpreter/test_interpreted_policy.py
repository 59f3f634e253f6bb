"""Triton's rewards, loss, sampling and decoding in the interpreter."""

import pytest
import torch
from three_way import VOCABULARIES

from kernels.torch_ref.philox import vocabulary_bits
from kernels.triton_impl import (
    count_lengths,
    lcpo_advantage,
    paged_decode_attention,
    policy_loss,
    sample_tokens,
)
from tests.kernels.triton_policy import (
    check_advantage,
    check_decoding,
    check_lengths,
    check_loss,
    check_sampling,
    loss_inputs,
)
from tests.kernels.triton_rows import draw


# Tiles of 8 tokens: sequences below, at and above one, empty ones, patterns across two tiles.
@pytest.mark.parametrize("pattern", [[3], [3, 4], [5, 5, 6], [7]])
def test_count_lengths(monkeypatch, pattern):
    monkeypatch.setattr(count_lengths, "_BLOCK", 8)
    for seed in range(3):
        check_lengths([0, 1, 7, 8, 9, 40, 0], pattern, seed=seed)
    check_lengths([0, 0], pattern)
    check_lengths([], pattern)


def test_pattern_across_a_tile_and_a_sequence(monkeypatch):
    monkeypatch.setattr(count_lengths, "_BLOCK", 4)
    ids = torch.tensor([1, 1, 1, 3, 4, 9, 3, 4, 3, 4, 9])  # 3 4 over a tile, over a border, whole
    bounds = torch.tensor([0, 7, 8, 11], dtype=torch.int32)
    counts = count_lengths.count_lengths(ids, bounds, 9, [3, 4])
    assert [x.tolist() for x in counts] == [
        [6, 1, 3],
        [5, 1, 2],
        [1, 0, 1],
        [False, True, False],
    ]


# One sample, an odd handful in more groups than members, and two tiles of samples.
@pytest.mark.parametrize("kind", ["linear", "sigmoid"])
@pytest.mark.parametrize("estimator", ["grpo", "dr_grpo", "rloo"])
def test_lcpo_advantage(kind, estimator):
    check_advantage(1, 1, kind, estimator)
    check_advantage(17, 20, kind, estimator)
    check_advantage(1100, 5, kind, estimator)


def test_a_group_that_does_not_exist_is_nan():
    one = torch.ones(3, dtype=torch.int32)
    group = torch.tensor([0, 5, -1], dtype=torch.int32)
    *terms, advantage = lcpo_advantage.lcpo_advantage(
        torch.ones(3), one, one, one, group, 2, "linear", 0.1, 0.1, 0.5, "grpo", 1e-6
    )
    assert advantage.isnan().tolist() == [False, True, True]
    assert all(x.isfinite().all() for x in terms)


# No token, one, an odd handful, and one more than a program's 512.
@pytest.mark.parametrize("kl_grad", ["k3", "corrected"])
@pytest.mark.parametrize("rows", [0, 1, 17, 513])
def test_policy_loss(rows, kl_grad):
    check_loss(loss_inputs(rows, 5), kl_grad)


def test_policy_loss_in_many_programs(monkeypatch):
    monkeypatch.setattr(policy_loss, "_BLOCK", 16)  # so the partials are three tiles as well
    check_loss(loss_inputs(16 * 40, 7), "k3")


def test_policy_loss_without_reference_or_entropy():
    logprob, old, _, _, *rest = loss_inputs(17, 5)
    check_loss((logprob, old, None, None, *rest), "k3", kl_coef=0.0, entropy_coef=0.0)
    logprob, old, ref, _, *rest = loss_inputs(17, 5)
    check_loss((logprob, old, ref, None, *rest), "k3", entropy_coef=0.0)
    strided = [x.repeat_interleave(2)[::2] for x in loss_inputs(17, 5)]
    check_loss(strided, "k3")


def test_kl_of_small_differences_does_not_cancel():
    """k3 of 1e-4 is 5e-9: e^d − 1 − d in float32 would be all rounding."""
    zero, one = torch.zeros(16), torch.ones(1)
    near, weight, ids = zero + 1e-4, one / 16, torch.zeros(16, dtype=torch.int32)
    order = (0.2, 0.2, 1.0, "k3", 0.0)
    loss, slope, _, stats = policy_loss.policy_loss(
        zero, near, near, None, zero[:1], weight, ids, *order
    )
    k3 = 1e-4**2 / 2 + 1e-4**3 / 6
    assert loss.item() == pytest.approx(k3, rel=1e-5)
    assert stats[2].item() == pytest.approx(16 * k3, rel=1e-5)
    assert stats[3].item() == pytest.approx(16 * (k3 - 1e-4**3 / 3), rel=1e-5)
    assert slope.tolist() == pytest.approx([-(1e-4 + k3) / 16] * 16, rel=1e-6)


def test_policy_loss_shows_a_live_nan():
    logprob, *rest = loss_inputs(17, 1)
    rest[4] = torch.ones(1)
    logprob[11] = torch.nan
    loss, _, _, stats = policy_loss.policy_loss(logprob, *rest, 0.2, 0.2, 0.1, "k3", 0.1)
    assert loss.isnan() and stats[1].isnan() and stats[5] == 17


def test_noise_is_the_references(monkeypatch):
    """Its bits, by way of the exponential variates: a row of equal logits returns the least."""
    seeds, positions = torch.tensor([5, -7]), torch.tensor([3, 2**32 + 1])
    bits = vocabulary_bits(seeds, positions, 300)
    tokens, *_ = sample_tokens.sample_tokens(
        torch.zeros(2, 300), 1.0, 0, 1.0, seeds, positions, 300
    )
    assert tokens.equal(bits.argmin(1))


@pytest.mark.parametrize("vocab", VOCABULARIES)
@pytest.mark.parametrize("temperature", [0.0, 0.6])
def test_sampling(vocab, temperature):
    for rows in (1, 17):
        check_sampling(draw(rows, vocab, scale=3.0, seed=rows), temperature)


# Beyond one tile of 2,048 as well; top-k of one, of all but one, and both cuts.
@pytest.mark.parametrize("vocab", [127, 2053])
@pytest.mark.parametrize(
    ("top_k", "top_p"), [(1, 1.0), (20, 1.0), (126, 1.0), (0, 0.3), (0, 0.95), (50, 0.9)]
)
def test_cuts(vocab, top_k, top_p):
    check_sampling(draw(3, vocab, scale=3.0), 0.7, top_k, top_p)


# Equal logits at the border: the lowest ids stay. -0.0 equals 0.0.
@pytest.mark.parametrize(("top_k", "top_p"), [(5, 1.0), (0, 0.5), (40, 0.5), (2, 0.9)])
def test_ties(monkeypatch, top_k, top_p):
    monkeypatch.setattr(sample_tokens, "_BLOCK", 64)
    logits = torch.zeros(4, 129)
    logits[:, ::2] = -0.0
    logits[2:, 60:] = 1.0
    check_sampling(logits, 1.0, top_k, top_p)
    assert check_sampling(logits, 0.0).tolist() == [0, 0, 60, 60]


def test_padding_and_strides_and_bfloat16():
    wide = draw(4, 300, scale=3.0)
    wide[:, 129:] = 100.0  # ids from vocab_size on never come out
    assert check_sampling(wide, 0.6, vocab=129).max() < 129
    assert check_sampling(wide, 0.0, vocab=129).max() < 129
    check_sampling(wide[:, 3:100], 0.6)
    check_sampling(draw(129, 4, scale=3.0).t(), 0.6, 20)
    check_sampling(draw(4, 129, dtype=torch.bfloat16, scale=3.0), 0.6)


@pytest.mark.parametrize("cuts", [(0, 1.0), (20, 0.9)])
@pytest.mark.parametrize("temperature", [0.0, 0.6])
def test_no_distribution_is_reported(temperature, cuts):
    logits = draw(6, 129)
    logits[0, 100] = torch.nan
    logits[1, 7] = torch.inf
    logits[2] = -torch.inf
    logits[3] = torch.nan
    logits[4, :128] = -torch.inf  # one entry left is one
    tokens = check_sampling(logits, temperature, *cuts)
    assert tokens[:4].eq(-1).all() and tokens[4] == 128 and tokens[5] >= 0


# Lengths: none, one, a page, one more, more than a tile. Groups: one head, odd, the model's, many.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "size", "page"), [(1, 1, 16, 4), (9, 3, 24, 16), (12, 2, 128, 7)]
)
def test_paged_decode_attention(heads, kv_heads, size, page, dtype):
    check_decoding([0, 1, page, page + 1, 70], heads, kv_heads, size, page, dtype)


def test_decoding_shows_a_nan():
    q = draw(1, 2, 16)
    cache = draw(1, 4, 1, 16)
    cache[0, 1] = torch.nan
    table, lengths = torch.zeros(1, 1, dtype=torch.int32), torch.tensor([3], dtype=torch.int32)
    out = paged_decode_attention.paged_decode_attention(q, cache, cache, table, lengths, 1.0)
    assert out.isnan().all()
