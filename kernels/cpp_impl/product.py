"""bfloat16 products with a float32 result in C++: torch has them on CUDA only."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from kernels.cpp_impl.loading import BOOL, I32, I64, PTR, bind

_product = bind(
    "lcpo_product",
    *(PTR, BOOL, I64, PTR, I64),  # a, whether it is transposed, its stride; b, its stride
    *(I64, I64, I64),  # m, n, k
    *(PTR, I64, BOOL, I32),  # c, its stride, whether to add; threads
)
_has_product = bind("lcpo_has_product", returns=BOOL)


@functools.cache
def supported() -> bool:
    """Whether this processor multiplies bfloat16 (AVX-512 BF16)."""
    return _has_product()


def fits(dtype: torch.dtype) -> bool:
    """Whether packed weights of this dtype can be multiplied here: see csrc/packed.h."""
    return dtype == torch.float32 or (dtype == torch.bfloat16 and supported())


def product(a: Tensor, b: Tensor, out: Tensor, *, add: bool) -> None:
    """out = a · b, or out += a · b: bfloat16 [m, k] and [k, n], rows or columns of a dense, rows of
    b and of out [m, n] float32 dense.
    """
    by_rows = a.stride(1) == 1
    _product(
        a.data_ptr(),
        not by_rows,
        a.stride(0 if by_rows else 1),
        b.data_ptr(),
        b.stride(0),
        a.shape[0],
        b.shape[1],
        a.shape[1],
        out.data_ptr(),
        out.stride(0),
        add,
        torch.get_num_threads(),
    )
