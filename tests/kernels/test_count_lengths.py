"""count_lengths: integers, so both backends must equal a plain loop."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import kernels
from kernels import cpp_impl
from kernels.ops.count_lengths import _op

EOS = 9
BACKENDS = ["torch", "cpp"]


def count(sequences, think_end=(5,)):
    ids = torch.tensor([t for s in sequences for t in s], dtype=torch.int64)
    cu_seqlens = torch.tensor([0, *map(len, sequences)]).cumsum(0).int()
    lengths = kernels.count_lengths(ids, cu_seqlens, eos_id=EOS, think_end=think_end)
    assert [x.dtype for x in lengths] == [torch.int32] * 3 + [torch.bool]
    return [tuple(row) for row in zip(*(x.tolist() for x in lengths), strict=True)]


def oracle(sequence, think_end):
    total = sequence.index(EOS) + 1 if EOS in sequence else len(sequence)
    k = len(think_end)
    ends = [i + k for i in range(total - k + 1) if tuple(sequence[i : i + k]) == think_end]
    think = min(ends, default=total)
    return total, think, total - think, EOS not in sequence


@pytest.mark.parametrize(
    ("sequence", "think_end", "expected"),
    [
        ([1, 2, 5, 3, 9], (5,), (5, 3, 2, False)),
        ([1, 2, 5, 3, 9, 5, 9], (5,), (5, 3, 2, False)),  # what follows the first EOS is not there
        ([1, 9, 5], (5,), (2, 2, 0, False)),  # the end of thinking comes after EOS
        ([1, 5, 2, 5, 3], (5,), (5, 2, 3, True)),  # the first of two; truncated
        ([1, 2, 3], (5,), (3, 3, 0, True)),
        ([], (5,), (0, 0, 0, True)),
        ([9], (5,), (1, 1, 0, False)),
        ([5], (5,), (1, 1, 0, True)),
        ([4, 4, 5, 6, 9], (4, 5), (5, 3, 2, False)),  # a false start of the pattern
        ([4, 4, 4, 5, 9], (4, 4, 5), (5, 4, 1, False)),  # overlapping starts
        ([1, 4, 9, 5], (4, 5), (3, 3, 0, False)),  # EOS inside an occurrence
        ([1, 4, 9], (4, 9), (3, 3, 0, False)),  # EOS as the pattern's last token
        ([4], (4, 5), (1, 1, 0, True)),  # shorter than the pattern
    ],
)
def test_cases(backend, sequence, think_end, expected):
    assert oracle(sequence, think_end) == expected
    # neighbours that would complete a pattern across the boundary
    got = count([[1, 4], sequence, [5, 9]], think_end)
    assert got[1] == expected
    assert count([sequence], think_end) == [expected]


def test_no_sequences(backend):
    assert count([]) == []
    assert count([[], []]) == [(0, 0, 0, True)] * 2


# Four distinct ids, so that EOS, patterns and false starts are frequent.
SEQUENCES = st.lists(st.lists(st.sampled_from([3, 4, 5, EOS]), max_size=12), max_size=6)


@pytest.mark.parametrize("name", BACKENDS)
@given(sequences=SEQUENCES, think_end=st.lists(st.sampled_from([4, 5]), min_size=1, max_size=3))
def test_equals_a_loop(name, sequences, think_end):
    if name == "cpp" and cpp_impl.library() is None:
        pytest.skip(cpp_impl.why_missing())
    think_end = tuple(think_end)
    with kernels.override(f"count_lengths={name}"):
        assert count(sequences, think_end) == [oracle(s, think_end) for s in sequences]


def test_opcheck(backend):
    ids, cu_seqlens = torch.tensor([1, 5, 9, 4]), torch.tensor([0, 3, 4], dtype=torch.int32)
    torch.library.opcheck(_op, (ids, cu_seqlens, EOS, [5]))


def test_refusals():
    ids = torch.tensor([1, 2, 9])

    def call(bounds, think_end=(5,), dtype=torch.int32, ids=ids):
        bounds = torch.tensor(bounds, dtype=dtype)
        kernels.count_lengths(ids, bounds, eos_id=EOS, think_end=think_end)

    with pytest.raises(ValueError, match="think_end is empty"):
        call([0, 3], think_end=())
    with pytest.raises(ValueError, match=r"must rise from 0 to 3 tokens, got \[0, 2\]"):
        call([0, 2])
    with pytest.raises(ValueError, match=r"must rise from 0 to 3 tokens, got \[0, 2, 1, 3\]"):
        call([0, 2, 1, 3])
    with pytest.raises(ValueError, match=r"cu_seqlens is torch.int64, expected torch.int32"):
        call([0, 3], dtype=torch.int64)
    with pytest.raises(ValueError, match=r"ids is torch.int32"):
        call([0, 3], ids=ids.int())
