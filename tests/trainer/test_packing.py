"""Packed batches: their layout, the weights of their tokens, and cutting into micro-batches."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.packing import NORMALISERS, pack, sequence_weights, split_by_tokens

TOKENS = st.lists(st.integers(0, 9), max_size=5)
PAIRS = st.lists(st.tuples(TOKENS.filter(bool), TOKENS), min_size=1, max_size=6)


def packed(pairs):
    prompts, responses = [p for p, _ in pairs], [r for _, r in pairs]
    return pack(prompts, responses, torch.arange(len(pairs)) + 1.0, range(10, 10 + len(pairs)))


def test_the_example_of_packed_batch():
    batch = packed([([11, 12], [21, 22]), ([13], [23])])
    assert batch.input_ids.tolist() == [11, 12, 21, 22, 13, 23]
    assert batch.position_ids.tolist() == [0, 1, 2, 3, 0, 1]
    assert batch.cu_seqlens.tolist() == [0, 4, 6]
    assert batch.max_seqlen == 4
    assert batch.rows.tolist() == [1, 2, 4]
    assert batch.targets.tolist() == batch.input_ids[[2, 3, 5]].tolist() == [21, 22, 23]
    assert batch.seq_ids.tolist() == [0, 0, 1]
    assert batch.samples.tolist() == [10, 11]
    assert batch.seq_weight.tolist() == [1.0, 2.0]


@given(PAIRS)
def test_each_row_predicts_the_next_token_of_its_own_response(pairs):
    batch = packed(pairs)
    assert batch.input_ids.tolist() == [token for p, r in pairs for token in [*p, *r]]
    assert batch.input_ids[batch.rows + 1].tolist() == batch.targets.tolist()
    bounds = batch.cu_seqlens.tolist()
    assert batch.max_seqlen == max(len(p) + len(r) for p, r in pairs)
    for index, (prompt, response) in enumerate(pairs):
        start, end = bounds[index], bounds[index + 1]
        mine = batch.seq_ids == index
        assert batch.targets[mine].tolist() == response
        expected = range(start + len(prompt) - 1, end - 1)
        assert batch.rows[mine].tolist() == list(expected)
        assert batch.position_ids[start:end].tolist() == list(range(end - start))


@given(PAIRS)
def test_dtypes_are_those_of_types(pairs):
    """A batch of empty responses too: torch makes a float tensor of an empty list by itself."""
    batch = packed(pairs)
    for name in ("input_ids", "position_ids", "rows", "targets", "samples"):
        assert getattr(batch, name).dtype == torch.int64, name
    for name in ("cu_seqlens", "seq_ids"):
        assert getattr(batch, name).dtype == torch.int32, name
    assert batch.seq_weight.dtype == torch.float32


def test_empty_response_keeps_its_place_and_trains_nothing():
    batch = packed([([1, 2], []), ([3], [4, 5])])
    assert batch.cu_seqlens.tolist() == [0, 2, 5]
    assert batch.rows.tolist() == [2, 3]
    assert batch.seq_ids.tolist() == [1, 1]


def test_empty_prompt_is_refused_with_its_sample():
    with pytest.raises(ValueError, match="sequence 11 has an empty prompt"):
        packed([([1], [2]), ([], [3])])


def test_prompts_and_responses_must_pair():
    with pytest.raises(ValueError):
        pack([[1], [2]], [[3]], torch.ones(2), [0, 1])


@given(st.lists(st.integers(1, 9), max_size=20), st.integers(9, 30))
def test_split_is_in_order_within_bounds_and_greedy(lengths, limit):
    batches = split_by_tokens(lengths, limit)
    assert [i for batch in batches for i in batch] == list(range(len(lengths)))
    sums = [sum(lengths[i] for i in batch) for batch in batches]
    assert all(0 < total <= limit for total in sums)
    for total, following in zip(sums, batches[1:], strict=False):
        assert total + lengths[following[0]] > limit, "the next sequence would have fitted"


def test_split_at_the_limit():
    assert split_by_tokens([4, 6, 10, 1], 10) == [[0, 1], [2], [3]]
    with pytest.raises(ValueError, match=r"11 tokens.*train\.micro_batch_tokens=10"):
        split_by_tokens([4, 11], 10)


COUNTS = [3, 1, 4]


def weights(normaliser, counts=COUNTS, micro_batches=((0, 1, 2),), constant=8):
    cut = [list(batch) for batch in micro_batches]
    found = sequence_weights(counts, normaliser, constant=constant, micro_batches=cut)
    assert found.dtype == torch.float32
    return found


@pytest.mark.parametrize(
    ("normaliser", "expected"),
    [
        ("token_mean", [1 / 8, 1 / 8, 1 / 8]),
        ("seq_mean", [1 / 9, 1 / 3, 1 / 12]),
        ("constant", [1 / 24, 1 / 24, 1 / 24]),
        ("sum_of_microbatch_means", [1 / 8, 1 / 8, 1 / 8]),
    ],
)
def test_weights_by_hand(normaliser, expected):
    torch.testing.assert_close(weights(normaliser), torch.tensor(expected))


@pytest.mark.parametrize("normaliser", ["token_mean", "seq_mean"])
def test_a_mean_has_weights_that_sum_to_one(normaliser):
    counts = torch.tensor([5, 17, 1, 40, 256, 3])
    total = (counts * weights(normaliser, counts.tolist())).sum().item()
    assert total == pytest.approx(1, abs=1e-6)


def test_only_the_public_codes_normaliser_depends_on_the_packing():
    one, two = ((0, 1, 2),), ((0, 1), (2,))
    changed = {
        n
        for n in NORMALISERS
        if weights(n, micro_batches=one).ne(weights(n, micro_batches=two)).any()
    }
    assert changed == {"sum_of_microbatch_means"}
    split = weights("sum_of_microbatch_means", micro_batches=two)
    torch.testing.assert_close(split, torch.tensor([1 / 4, 1 / 4, 1 / 4]))
    assert (torch.tensor(COUNTS) * split).sum().item() == pytest.approx(2)  # one a micro-batch


@pytest.mark.parametrize("normaliser", NORMALISERS)
def test_weights_of_empty_responses_are_finite(normaliser):
    assert weights(normaliser, [0, 0], ((0,), (1,))).isfinite().all()
    assert weights(normaliser, [], ()).shape == (0,)


def test_unknown_normaliser_is_refused():
    with pytest.raises(ValueError, match=r"'mean'.*token_mean"):
        weights("mean")
