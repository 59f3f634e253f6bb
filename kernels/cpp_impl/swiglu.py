"""swiglu in C++; arguments were validated by `kernels.ops`."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.cpp_impl.loading import BOOL, I32, I64, PTR, bind

# gate, up, is_bf16, size; out; threads
_forward = bind("lcpo_swiglu_forward", PTR, PTR, BOOL, I64, PTR, I32)
# grad, gate, up, is_bf16, size; d_gate, d_up; threads
_backward = bind("lcpo_swiglu_backward", PTR, PTR, PTR, BOOL, I64, PTR, PTR, I32)


def forward(gate: Tensor, up: Tensor) -> Tensor:
    """See ops.swiglu; of one dtype."""
    gate, up = gate.contiguous(), up.contiguous()
    out = torch.empty_like(gate)
    _forward(
        gate.data_ptr(),
        up.data_ptr(),
        gate.dtype == torch.bfloat16,
        gate.numel(),
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out


def backward(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """(d_gate, d_up)."""
    grad, gate, up = grad.contiguous(), gate.contiguous(), up.contiguous()
    d_gate, d_up = torch.empty_like(gate), torch.empty_like(up)
    _backward(
        grad.data_ptr(),
        gate.data_ptr(),
        up.data_ptr(),
        gate.dtype == torch.bfloat16,
        gate.numel(),
        d_gate.data_ptr(),
        d_up.data_ptr(),
        torch.get_num_threads(),
    )
    return d_gate, d_up
