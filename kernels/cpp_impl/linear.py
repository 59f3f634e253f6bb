"""Linear layers in C++, and tiles of logits; arguments were validated by `kernels.ops`."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.cpp_impl.loading import I32, I64, PTR, bind

# x, rows; weight, bias, outputs, inputs; out; threads
_linear = bind("lcpo_linear", PTR, I64, PTR, PTR, I64, I64, PTR, I32)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """See ops.linear."""
    return linear_into(x, weight, bias, torch.empty(x.shape[0], weight.shape[0]))


def linear_into(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    """The same in `out` [T, out], dense."""
    x, weight = x.contiguous(), weight.contiguous()
    bias = None if bias is None else bias.contiguous()
    _linear(
        x.data_ptr(),
        x.shape[0],
        weight.data_ptr(),
        None if bias is None else bias.data_ptr(),
        *weight.shape,
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out
