"""The C++ product of bfloat16 matrices with a float32 result."""

import pytest
import torch

from kernels.cpp_impl import product


@pytest.fixture(autouse=True)
def needed(cpp) -> None:
    if not product.supported():
        pytest.skip("this processor has no AVX-512 BF16; torch's float32 product is used")


# One of everything; panels of 8 rows and 48 columns filled exactly, and short of one or over by
# one; odd k, which leaves half a pair; shapes of the op's edges, a column tile of 5 among them.
SHAPES = [(1, 1, 1), (8, 48, 2), (7, 47, 3), (9, 49, 4), (17, 100, 33), (129, 24, 257), (5, 576, 1)]


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_product(m, n, k, transposed):
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(s, generator=generator).bfloat16() for s in ((m, k), (k, n)))
    before = torch.randn(m, n, generator=generator)
    want = a.double() @ b.double()
    a = a.t().contiguous().t() if transposed else a
    # Guard rows and columns around the result, and NaN where it must be written and not read.
    room = torch.full((m + 2, n + 2), torch.nan)
    out = room[1:-1, 1:-1]
    product.product(a, b, out, add=False)
    torch.testing.assert_close(out.double(), want, rtol=1e-6, atol=1e-5)
    assert room.isnan().sum() == room.numel() - m * n
    out.copy_(before)
    product.product(a, b, out, add=True)
    torch.testing.assert_close(out.double(), want + before, rtol=1e-6, atol=1e-5)


def test_strided_factors():
    a, b = torch.randn(20, 40).bfloat16(), torch.randn(40, 60).bfloat16()
    out = torch.empty(9, 50)
    product.product(a[:9, 3:20], b[:17, 5:55], out, add=False)
    want = a[:9, 3:20].double() @ b[:17, 5:55].double()
    torch.testing.assert_close(out.double(), want, rtol=1e-6, atol=1e-5)


def test_what_is_not_there_is_not_read():
    """Half a pair and the rest of a panel are zeros, whatever lies behind the factors."""
    a, b = torch.full((9, 5), torch.nan).bfloat16(), torch.full((5, 50), torch.nan).bfloat16()
    a[:7, :3], b[:3, :47] = 1.0, 1.0
    out = torch.empty(7, 47)
    product.product(a[:7, :3], b[:3, :47], out, add=False)
    assert out.eq(3).all()


def test_the_number_of_threads_does_not_matter():
    a, b = torch.randn(129, 257).bfloat16(), torch.randn(257, 100).bfloat16()
    found = []
    before = torch.get_num_threads()
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        found.append(torch.empty(129, 100))
        product.product(a, b, found[-1], add=False)
    torch.set_num_threads(before)
    assert found[0].equal(found[1]) and found[0].equal(found[2])
