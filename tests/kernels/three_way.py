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


def run(function, inputs, upstream) -> tuple[Tensor, ...]:
    """Outputs of function(*inputs) and the gradients of its inputs, given those of the outputs.

    Both are cast to what they meet, so float64 inputs give the truth. An upstream gradient of None
    leaves that output out; inputs that are None stay None.
    """
    leaves = [None if x is None else x.detach().requires_grad_() for x in inputs]
    outputs = function(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    pairs = [(o, g.to(o.dtype)) for o, g in zip(outputs, upstream, strict=True) if g is not None]
    torch.autograd.backward(*zip(*pairs, strict=True))
    return *(o.detach() for o in outputs), *(x.grad for x in leaves if x is not None)


def compare(function, plain, inputs, upstream, atol: float, names: str) -> tuple[Tensor, ...]:
    """Three-way test of `function` against `plain`; returns what `function` gave."""
    got, same = run(function, inputs, upstream), run(plain, inputs, upstream)
    truth = run(plain, [None if x is None else x.double() for x in inputs], upstream)
    for name, a, b, c in zip(names.split(), got, same, truth, strict=True):
        assert a.dtype == b.dtype, name
        assert_three_way(a, b, c, atol, name)
    return got


def on_threads(call) -> list[tuple[Tensor, ...]]:
    """What call() returns with 1, 2 and 3 threads: more, and more unevenly, than there are."""
    before = torch.get_num_threads()
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(call())
    torch.set_num_threads(before)
    return found


def assert_same_bits(found: list[tuple[Tensor, ...]]) -> None:
    """All results are equal to the first."""
    for other in found[1:]:
        assert all(a.equal(b) for a, b in zip(found[0], other, strict=True))


def guarded(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """(the whole, its inside [*shape] between rows of guards), all NaN before a kernel writes."""
    whole = torch.full((shape[0] + 2, *shape[1:]), torch.nan, dtype=dtype)
    return whole, whole[1:-1]


def assert_guards(whole: Tensor) -> None:
    """All of the inside was written, and none of the guards."""
    assert whole[1:-1].isfinite().all() and whole[[0, -1]].isnan().all()
