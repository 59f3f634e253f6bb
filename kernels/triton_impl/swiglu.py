"""silu(gate) · up and its gradient, elementwise.

    s = 1 / (1 + e^−g);  out = g s u;  dg = dout u s (1 + g (1 − s));  du = dout g s

A program for each tile of each row, so that gate and up may be the halves of one wider tensor. All
is float32 in registers and rounded once; each tensor passes memory once, and nothing but gate and
up is kept for the backward pass.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton_impl.common import row_offset, unit_columns

_BLOCK, _WARPS = 1024, 4


def forward(gate: Tensor, up: Tensor) -> Tensor:
    """[T, I] in the dtype of gate; rows may be strided. See ops.swiglu."""
    gate, up = unit_columns(gate), unit_columns(up)
    rows, columns = gate.shape
    out = torch.empty(rows, columns, dtype=gate.dtype, device=gate.device)
    swiglu_forward_kernel[(rows, triton.cdiv(columns, _BLOCK))](
        gate,
        gate.stride(0),
        up,
        up.stride(0),
        out,
        columns,
        BLOCK=_BLOCK,
        num_warps=_WARPS,
    )
    return out


def backward(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """(d_gate, d_up) [T, I] each."""
    grad, gate, up = unit_columns(grad), unit_columns(gate), unit_columns(up)
    rows, columns = gate.shape
    d_gate, d_up = (torch.empty(rows, columns, dtype=x.dtype, device=x.device) for x in (gate, up))
    swiglu_backward_kernel[(rows, triton.cdiv(columns, _BLOCK))](
        grad,
        grad.stride(0),
        gate,
        gate.stride(0),
        up,
        up.stride(0),
        d_gate,
        d_up,
        columns,
        BLOCK=_BLOCK,
        num_warps=_WARPS,
    )
    return d_gate, d_up


@triton.jit
def swiglu_forward_kernel(gate, gate_stride, up, up_stride, out, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    g = tl.load(gate + row_offset(row, gate_stride) + column, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + row_offset(row, up_stride) + column, mask=inside, other=0.0).to(tl.float32)
    result = g * tl.sigmoid(g) * u
    at = row_offset(row, columns) + column
    tl.store(out + at, result.to(out.dtype.element_ty), mask=inside)


@triton.jit
def swiglu_backward_kernel(
    grad,
    grad_stride,
    gate,
    gate_stride,
    up,
    up_stride,
    d_gate,
    d_up,
    columns,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    d = tl.load(grad + row_offset(row, grad_stride) + column, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(gate + row_offset(row, gate_stride) + column, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + row_offset(row, up_stride) + column, mask=inside, other=0.0).to(tl.float32)
    s = tl.sigmoid(g)
    at = row_offset(row, columns) + column
    by_gate = d * u * s * (1.0 + g * (1.0 - s))
    tl.store(d_gate + at, by_gate.to(d_gate.dtype.element_ty), mask=inside)
    tl.store(d_up + at, (d * g * s).to(d_up.dtype.element_ty), mask=inside)
