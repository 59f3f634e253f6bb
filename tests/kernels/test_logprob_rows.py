"""The row kernels of linear_logprob on logits that no product would give."""

import pytest
import torch
from three_way import (
    ROWS,
    VOCABULARIES,
    assert_guards,
    assert_same_bits,
    assert_three_way,
    error,
    guarded,
    on_threads,
)

from kernels.cpp_impl import logprob_rows as cpp_rows
from kernels.torch_ref import linear_logprob as ref

DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture
def rows_kernels(backend):
    """(forward, backward) of the backend."""
    if backend == "cpp":
        return cpp_rows.logprob_rows, cpp_rows.logprob_rows_backward
    return ref.logprob_rows, ref.logprob_rows_backward


def check(rows_kernels, logits, targets, temperature):
    forward, backward = rows_kernels
    grads = torch.randn(2, logits.shape[0])

    def plain(x):
        x = x.detach().requires_grad_()
        outputs = ref.definition(x, targets, temperature, x.shape[1])
        torch.autograd.backward(
            outputs, [g.to(out.dtype) for g, out in zip(grads, outputs, strict=True)]
        )
        return *outputs, x.grad

    logprob, stats = forward(logits, targets, temperature)
    work = logits.clone()
    backward(work, targets, stats, *grads, temperature)
    got = (logprob, stats[:, 1] - stats[:, 2], work)
    for name, a, b, c in zip(
        ("logprob", "entropy", "d_logits"), got, plain(logits), plain(logits.double()), strict=True
    ):
        assert_three_way(a, b, c, 2e-6, name)


def draw(rows, vocab, scale=3.0):
    generator = torch.Generator().manual_seed(rows * 10_000 + vocab)
    logits = torch.randn(rows, vocab, generator=generator) * scale
    return logits, torch.randint(0, vocab, (rows,), generator=generator)


@pytest.mark.parametrize("vocab", VOCABULARIES)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_grid(rows_kernels, rows, vocab, dtype):
    logits, targets = draw(rows, vocab)
    check(rows_kernels, logits.to(dtype), targets, temperature=0.6)


# The whole row shifted: a running max that started at 0 would underflow all of it below -104.
@pytest.mark.parametrize("shift", [100.0, -100.0, 1e4, -1e4])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_shift(rows_kernels, shift, temperature):
    logits, targets = draw(17, 257)
    check(rows_kernels, logits + shift, targets, temperature)


# The masked start covers one register, one tile, and all but the last entry.
@pytest.mark.parametrize("masked", [16, 128, 256])
def test_first_tile_is_minus_infinity(rows_kernels, masked):
    logits, targets = draw(17, 257)
    logits[:, :masked] = -torch.inf
    check(rows_kernels, logits, targets.clamp(min=masked), temperature=0.6)


def test_t16_extremes(rows_kernels):
    forward, backward = rows_kernels
    equal = torch.zeros(1, 257)
    logprob, stats = forward(equal, torch.zeros(1, dtype=torch.int64), 0.6)
    assert error(logprob, -torch.tensor([257.0]).log()) < 1e-5
    assert error(stats[:, 1] - stats[:, 2], torch.tensor([257.0]).log()) < 1e-5
    # A target without any probability: -inf and a finite gradient, not NaN.
    certain = torch.full((1, 257), -1e4)
    certain[0, 7] = 1e4
    logprob, stats = forward(certain, torch.tensor([7]), 1.0)
    assert logprob.item() == 0 and (stats[:, 1] - stats[:, 2]).item() == 0
    backward(certain, torch.tensor([3]), stats, torch.ones(1), torch.ones(1), 1.0)
    assert certain.isfinite().all() and certain[0, 3] == 1 and certain[0, 7] == -1


def test_nan_reaches_its_own_row_only(rows_kernels):
    logits, targets = draw(3, 129)
    logits[1, 100] = torch.nan
    logprob, stats = rows_kernels[0](logits, targets, 0.6)
    assert logprob.isnan().tolist() == [False, True, False]
    assert stats[[0, 2]].isfinite().all()


# Blocks of the C++ kernel hold 1024 entries: a maximum that rises in the second or third one makes
# it rescale the sums so far; the last has one entry.
@pytest.mark.parametrize("peak", [0, 1023, 1024, 2048])
def test_peak_in_a_later_block(rows_kernels, peak):
    logits, targets = draw(17, 2049)
    logits[:, peak] += 30.0
    check(rows_kernels, logits, targets, temperature=0.6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_cpp_writes_all_its_outputs_and_nothing_else(cpp, dtype):
    """Outputs lie between guard rows and start as NaN: what is skipped or overrun shows."""
    rows, vocab = 17, 129
    logits, targets = draw(rows, vocab)
    logits, low = logits.to(dtype), dtype == torch.bfloat16
    shape = (logits.data_ptr(), low, rows, vocab, vocab, 0.6, targets.data_ptr())
    wholes, (logprob, stats, d_logits) = zip(
        guarded(rows), guarded(rows, 3), guarded(rows, vocab + 2, dtype=dtype), strict=True
    )
    cpp_rows._forward(*shape, logprob.data_ptr(), stats.data_ptr(), 2)
    grads = logprob.data_ptr(), None
    cpp_rows._backward(*shape, stats.data_ptr(), *grads, d_logits.data_ptr(), vocab + 2, 2)
    for whole in wholes:
        assert_guards(whole)
    assert d_logits[:, vocab:].eq(0).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_cpp_does_not_depend_on_threads(cpp, dtype):
    logits, targets = draw(129, 2053)
    logits = logits.to(dtype)

    def call():
        logprob, stats = cpp_rows.logprob_rows(logits, targets, 0.6)
        work = logits.clone()
        cpp_rows.logprob_rows_backward(work, targets, stats, logprob, None, 0.6)
        return logprob, stats, work

    assert_same_bits(on_threads(call))
