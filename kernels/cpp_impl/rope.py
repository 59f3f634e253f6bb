"""rope in C++; arguments were validated by `kernels.ops`."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from kernels.cpp_impl.loading import BOOL, I32, I64, PTR, bind

_rope = bind(
    "lcpo_rope",
    *(PTR, PTR, BOOL, PTR, PTR),  # q, k, is_bf16, cos, sin
    *(I64, I64, I64, I64, PTR),  # tokens, q_heads, k_heads, half, strides
    *(PTR, PTR, I32),  # q_out, k_out; threads
)
_Strides = ctypes.c_int64 * 4


def rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """See ops.rope. Tokens and heads may be strided (slices of one projection), columns not."""
    tokens, q_heads, size = q.shape
    q, k = (x if x.stride(2) == 1 else x.contiguous() for x in (q, k))
    cos, sin = cos.float().contiguous(), sin.float().contiguous()
    q_out, k_out = torch.empty(q.shape, dtype=q.dtype), torch.empty(k.shape, dtype=k.dtype)
    strides = _Strides(q.stride(0), q.stride(1), k.stride(0), k.stride(1))
    _rope(
        q.data_ptr(),
        k.data_ptr(),
        q.dtype == torch.bfloat16,
        cos.data_ptr(),
        sin.data_ptr(),
        tokens,
        q_heads,
        k.shape[1],
        size // 2,
        strides,
        q_out.data_ptr(),
        k_out.data_ptr(),
        torch.get_num_threads(),
    )
    return q_out, k_out
