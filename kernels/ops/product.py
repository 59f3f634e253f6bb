"""A product added to a float32 sum: what gradients of weights are."""

from __future__ import annotations

from torch import Tensor

from kernels import implementations


def product(a: Tensor, b: Tensor, out: Tensor, *, add: bool) -> None:
    """out = a · b, or out += a · b. No gradient.

    a [M, K], by rows or by columns, and b [K, N] in one dtype, out [M, N] in the same or, where
    they are bfloat16, in float32: then nothing is rounded on the way. Rows of b and out are dense.
    """
    implementations.product(a, b, out, add=add)
