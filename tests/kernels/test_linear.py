"""linear: a float64 truth, gradients, and rows that do not depend on each other, bit for bit."""

import pytest
import torch
import torch.nn.functional as F
from three_way import assert_three_way

import kernels

# Panels of 64 outputs filled, and not; sums of one chain (256 inputs) and of more; one of each.
SHAPES = [(32, 64), (64, 32), (320, 128), (7, 261), (1, 1), (600, 65)]


def problem(inner, outer, rows=200):
    generator = torch.Generator().manual_seed(0)
    return tuple(
        torch.randn(shape, generator=generator)
        for shape in ((rows, inner), (outer, inner), (outer,))
    )


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(("inner", "outer"), SHAPES)
def test_a_product(backend, inner, outer, with_bias):
    x, weight, bias = problem(inner, outer)
    given = (x, weight, bias) if with_bias else (x, weight)
    truth = F.linear(*(t.double() for t in given))
    assert_three_way(kernels.linear(*given), F.linear(*given), truth, 1e-5, "product")


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(("inner", "outer"), SHAPES)
def test_a_row_does_not_depend_on_the_others(cpp, inner, outer, with_bias):
    """Row counts that fill the registers' tiles of 6, the blocks of 48 and 480, or neither."""
    x, weight, bias = problem(inner, outer, rows=1000)
    bias = bias if with_bias else None
    whole = kernels.linear(x, weight, bias)
    generator = torch.Generator().manual_seed(1)
    for rows in (1, 2, 5, 6, 7, 48, 49, 97, 481):
        some = torch.randperm(1000, generator=generator)[:rows]
        assert torch.equal(kernels.linear(x[some], weight, bias), whole[some])


def test_the_number_of_threads_does_not_matter(cpp):
    x, weight, bias = problem(320, 130, rows=1000)
    found, before = [], torch.get_num_threads()
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        found.append(kernels.linear(x, weight, bias))
    torch.set_num_threads(before)
    assert found[0].equal(found[1]) and found[0].equal(found[2])


def test_factors_need_not_be_dense(backend):
    x, weight, bias = problem(20, 130)
    got = kernels.linear(x[::2, 3:], weight[:, :17], bias)
    torch.testing.assert_close(got, F.linear(x[::2, 3:], weight[:, :17], bias))


def test_gradients_are_those_of_a_linear_layer(backend):
    leaves = [t.requires_grad_() for t in problem(12, 9, 45)]
    upstream = torch.randn(45, 9)
    for given in (leaves, leaves[:2]):
        got, want = (
            torch.autograd.grad(f(*given), given, upstream) for f in (kernels.linear, F.linear)
        )
        torch.testing.assert_close(got, want)
    # What needs no gradient gets none.
    frozen = leaves[1].detach()
    (only,) = torch.autograd.grad(kernels.linear(leaves[0], frozen), leaves[:1], upstream)
    torch.testing.assert_close(only, upstream @ frozen)


def test_no_rows(backend):
    assert kernels.linear(torch.empty(0, 7), torch.ones(9, 7)).shape == (0, 9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.ones(3, 8)}, "weight has shape"),
        ({"weight": torch.ones(9, 7).double()}, "weight is torch.float64"),
        ({"bias": torch.ones(8)}, "bias has shape"),
        ({"bias": torch.ones(9).double()}, "bias is torch.float64"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    given = {"x": torch.ones(3, 7), "weight": torch.ones(9, 7), "bias": torch.ones(9)} | change
    with pytest.raises(ValueError, match=message):
        kernels.linear(**given)
