"""Packed batches: their layout, the weights of their tokens, and cutting into micro-batches."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.flops import forward_flops
from trainer.model import ModelConfig
from trainer.packing import (
    NORMALISERS,
    micro_batches,
    pack,
    sequence_weights,
    shares_prompts,
)

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


def test_t13_empty_prompt_is_refused_with_its_sample():
    with pytest.raises(ValueError, match="sequence 11 has an empty prompt"):
        packed([([1], [2]), ([], [3])])


def test_prompts_and_responses_must_pair():
    with pytest.raises(ValueError):
        pack([[1], [2]], [[3]], torch.ones(2), [0, 1])


def test_the_example_of_a_prompt_that_stands_once():
    batch = pack(
        [[11, 12]] * 2 + [[13]], [[21, 22], [23], [24]], torch.ones(3), [0, 1, 2], groups=[4, 4, 9]
    )
    assert batch.input_ids.tolist() == [11, 12, 13, 21, 22, 23, 24]
    assert batch.position_ids.tolist() == [0, 1, 0, 2, 3, 2, 1]
    assert batch.cu_seqlens.tolist() == [0, 2, 3, 5, 6, 7]
    assert batch.prefix.tolist() == [-1, -1, 0, 0, 1]
    assert batch.max_seqlen == 2
    assert batch.rows.tolist() == [1, 3, 1, 2]
    assert batch.targets.tolist() == [21, 22, 23, 24]
    assert batch.seq_ids.tolist() == [0, 0, 1, 2]


GROUPED = st.lists(
    st.tuples(TOKENS.filter(bool), st.lists(TOKENS, min_size=1, max_size=4)), max_size=5
)


@given(GROUPED.filter(bool))
def test_shared_and_copied_prompts_hold_the_same_tokens(groups):
    """Following each response's rows back through its prefix gives what a copy would have given."""
    prompts = [p for p, responses in groups for _ in responses]
    responses = [r for _, responses in groups for r in responses]
    ids = [g for g, (_, responses) in enumerate(groups) for _ in responses]
    arguments = prompts, responses, torch.ones(len(ids)), range(len(ids))
    shared, copied = pack(*arguments, groups=ids), pack(*arguments)
    assert sum(map(len, prompts)) - sum(len(p) for p, _ in groups) == len(copied.input_ids) - len(
        shared.input_ids
    )
    for name in ("targets", "seq_ids", "samples"):
        assert getattr(shared, name).tolist() == getattr(copied, name).tolist()
    for name in ("input_ids", "position_ids"):
        values = getattr(shared, name)
        assert values[shared.rows].tolist() == getattr(copied, name)[copied.rows].tolist()
    bounds, prefix = shared.cu_seqlens.tolist(), shared.prefix.tolist()
    for place, response in enumerate(responses):
        own = len(groups) + place
        before = slice(*bounds[prefix[own] :][:2])
        sequence = [*shared.input_ids[before], *shared.input_ids[slice(*bounds[own:][:2])]]
        assert sequence == [*prompts[place], *response]


SIZES = st.lists(st.tuples(st.integers(1, 4), st.integers(0, 8)), max_size=20)


@given(SIZES, st.integers(12, 40), st.booleans())
def test_micro_batches_hold_each_sequence_once_within_bounds(sizes, limit, shared):
    prompts, responses = [p for p, _ in sizes], [r for _, r in sizes]
    groups = [i // 3 for i in range(len(sizes))] if shared else None
    prompts = [prompts[i // 3 * 3] for i in range(len(sizes))] if shared else prompts
    found = micro_batches(prompts, responses, groups, limit, lambda work: work.tokens)
    assert sorted(i for batch in found for i in batch) == list(range(len(sizes)))
    for batch in found:
        assert batch == sorted(batch) and batch
        copies = (
            {groups[i]: prompts[i] for i in batch}.values()
            if shared
            else (prompts[i] for i in batch)
        )
        assert sum(copies) + sum(responses[i] for i in batch) <= limit


def test_micro_batches_at_the_limit():
    def cut(lengths: list[int]) -> list[list[int]]:
        ones = [1] * len(lengths)
        return micro_batches(ones, [n - 1 for n in lengths], None, 10, lambda work: work.tokens)

    assert cut([4, 6, 10, 1, 9]) == [[2], [3, 4], [0, 1]]
    with pytest.raises(ValueError, match=r"11 tokens.*train\.micro_batch_tokens=10"):
        cut([4, 11])


@pytest.mark.parametrize("shared", [False, True])
def test_micro_batches_are_full_and_cost_the_same(shared):
    """The paper's step in size: 128 prompts with 16 samples, whose lengths a budget scatters."""
    generator = torch.Generator().manual_seed(0)
    groups = [i // 16 for i in range(2048)]
    drawn = torch.randint(60, 300, (128,), generator=generator).tolist()
    prompts = [drawn[g] for g in groups]
    responses = torch.randint(100, 4000, (2048,), generator=generator).tolist()
    model = ModelConfig("qwen2", 151_936, 1536, 8960, 28, 12, 2, 128)
    costs = []

    def cost(work) -> float:
        return forward_flops(model, work)

    found = micro_batches(prompts, responses, groups if shared else None, 32_768, cost)
    for batch in found:
        alone = {groups[i]: prompts[i] for i in batch}
        tokens = sum(alone.values()) if shared else sum(prompts[i] for i in batch)
        costs.append((tokens + sum(responses[i] for i in batch), batch))
    assert sum(tokens for tokens, _ in costs) / (32_768 * len(found)) > 0.98
    pairs = [sum(n * prompts[i] + n * n / 2 for i in b for n in [responses[i]]) for _, b in costs]
    rows = [sum(responses[i] for i in b) for _, b in costs]
    flops = [
        2 * 1.31e9 * tokens + 4 * 28 * 1536 * p + 2 * 1536 * 151_936 * r
        for (tokens, _), p, r in zip(costs, pairs, rows, strict=True)
    ]
    assert max(flops) / (sum(flops) / len(flops)) < 1.03


def test_prompts_are_shared_when_it_pays():
    long, short = ([10] * 4, [20] * 4), ([10] * 4, [400] * 4)
    one, each = [7] * 4, [1, 2, 3, 4]
    assert shares_prompts("auto", *long, one)  # 30 of 120 tokens
    assert not shares_prompts("auto", *short, one)  # 30 of 1640
    assert not shares_prompts("auto", *long, each)
    for setting in (True, False):
        assert shares_prompts(setting, *short, each) is setting


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
def test_t11_weights_of_empty_responses_are_finite(normaliser):
    assert weights(normaliser, [0, 0], ((0,), (1,))).isfinite().all()
    assert weights(normaliser, [], ()).shape == (0,)


def test_unknown_normaliser_is_refused():
    with pytest.raises(ValueError, match=r"'mean'.*token_mean"):
        weights("mean")
