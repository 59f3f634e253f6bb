"""The row kernels of linear_logprob, and logprob_from_logits, on logits no product would give."""

import pytest
import torch
from three_way import ROWS, VOCABULARIES, assert_three_way, error

import kernels
from kernels.cpp_impl import logprob_rows as cpp_rows
from kernels.torch_ref import linear_logprob as ref


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
        outputs = kernels.logprob_from_logits(x, targets, temperature=temperature)
        torch.autograd.backward(outputs, [g.to(x.dtype) for g in grads])
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
def test_grid(rows_kernels, rows, vocab):
    check(rows_kernels, *draw(rows, vocab), temperature=0.6)


# The whole row shifted: a running max that started at 0 would underflow all of it below -104.
@pytest.mark.parametrize("shift", [100.0, -100.0, 1e4, -1e4])
def test_shift(rows_kernels, shift):
    logits, targets = draw(17, 257)
    check(rows_kernels, logits + shift, targets, temperature=1.0)


# The masked start covers one register, one tile, and all but the last entry.
@pytest.mark.parametrize("masked", [16, 128, 256])
def test_first_tile_is_minus_infinity(rows_kernels, masked):
    logits, targets = draw(17, 257)
    logits[:, :masked] = -torch.inf
    check(rows_kernels, logits, targets.clamp(min=masked), temperature=0.6)


def test_extremes(rows_kernels):
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


def test_gradcheck_of_logits_form():
    logits = draw(5, 13)[0].double().requires_grad_()
    targets = torch.tensor([0, 10, 3, 3, 7])
    assert torch.autograd.gradcheck(
        lambda x: kernels.logprob_from_logits(x, targets, temperature=0.6, vocab_size=11), logits
    )


def test_cpp_writes_all_its_outputs_and_nothing_else(cpp):
    """Outputs lie between guard rows and start as NaN: what is skipped or overrun shows."""
    rows, vocab, guard = 17, 129, 3
    logits, targets = draw(rows, vocab)
    logprob = torch.full((rows + 2 * guard,), torch.nan)
    stats = torch.full((rows + 2 * guard, 3), torch.nan)
    work = torch.full((rows + 2 * guard, vocab), torch.nan)
    inside = slice(guard, guard + rows)
    work[inside] = logits
    threads = 2
    shape = (rows, vocab, 0.6, targets.data_ptr())
    cpp_rows._forward(
        logits.data_ptr(), *shape, logprob[inside].data_ptr(), stats[inside].data_ptr(), threads
    )
    grad = torch.randn(rows)
    cpp_rows._backward(
        work[inside].data_ptr(), *shape, stats[inside].data_ptr(), grad.data_ptr(), None, threads
    )
    for output in (logprob, stats, work):
        assert output[inside].isfinite().all()
        assert output[:guard].isnan().all() and output[-guard:].isnan().all()


def test_cpp_does_not_depend_on_threads(cpp):
    logits, targets = draw(129, 2053)
    found = []
    before = torch.get_num_threads()
    for threads in (1, 3):
        torch.set_num_threads(threads)
        logprob, stats = cpp_rows.logprob_rows(logits, targets, 0.6)
        work = logits.clone()
        cpp_rows.logprob_rows_backward(work, targets, stats, logprob, None, 0.6)
        found.append((logprob, stats, work))
    torch.set_num_threads(before)
    assert all(a.equal(b) for a, b in zip(*found, strict=True))
