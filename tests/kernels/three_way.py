"""How kernel results are judged: against float64, and against the same dtype in plain torch.

A fixed tolerance is either too loose for one size or too tight for another. The error that plain
torch makes in the same dtype is the yardstick.
"""

import torch
from torch import Tensor

# Columns: below, at and above a power of two (a tile), two tiles and one, and 2053, a prime, which
# spans several tiles of any size and divides by none.
VOCABULARIES = [127, 128, 129, 257, 2053]
# Rows: one, two, an odd handful, a tile, and a tile and one.
ROWS = [1, 2, 17, 128, 129]


def error(got: Tensor, truth: Tensor) -> float:
    """Largest absolute difference, in float64; NaN counts as infinite."""
    if got.numel() == 0:
        return 0.0
    return float(
        (got.detach().double() - truth.detach().double()).abs().nan_to_num(nan=torch.inf).max()
    )


def assert_three_way(got: Tensor, plain: Tensor, truth: Tensor, atol: float, name: str) -> None:
    """err(got vs truth) <= 2 err(plain torch vs truth) + atol, and the same shape."""
    assert got.shape == truth.shape, name
    ours, theirs = error(got, truth), error(plain, truth)
    assert ours <= 2 * theirs + atol, f"{name}: {ours:.3g}, plain torch {theirs:.3g}"
