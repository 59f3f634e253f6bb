"""rms_norm in C++; arguments were validated by `kernels.ops`."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.cpp_impl.loading import BOOL, F64, I32, I64, PTR, bind

_forward = bind(
    "lcpo_rms_norm_forward",
    *(PTR, BOOL, PTR, BOOL, PTR, BOOL),  # x, residual, weight, and whether they are bf16
    *(I64, I64, F64, PTR, PTR, PTR, I32),  # rows, width, eps; y, total, rstd; threads
)
_backward = bind(
    "lcpo_rms_norm_backward",
    *(PTR, PTR, PTR, BOOL, PTR, BOOL),  # grad_y, grad_total, total, is_bf16, weight, is_bf16
    *(PTR, I64, I64, PTR, PTR, I32),  # rstd, rows, width; d_x, d_weight; threads
)


def forward(
    x: Tensor, weight: Tensor, eps: float, residual: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """See torch_ref.rms_norm.forward."""
    rows, width = x.shape
    x, weight = x.contiguous(), weight.contiguous()
    dtype, low = x.dtype, torch.bfloat16
    if residual is None:
        total = x.new_empty(0, width)
    else:
        residual = residual.contiguous()
        dtype = torch.promote_types(dtype, residual.dtype)
        total = torch.empty(rows, width, dtype=dtype)
    y = torch.empty(rows, width, dtype=torch.promote_types(dtype, weight.dtype))
    rstd = torch.empty(rows)
    _forward(
        x.data_ptr(),
        x.dtype == low,
        None if residual is None else residual.data_ptr(),
        dtype == low if residual is None else residual.dtype == low,
        weight.data_ptr(),
        weight.dtype == low,
        rows,
        width,
        eps,
        y.data_ptr(),
        total.data_ptr(),
        rstd.data_ptr(),
        torch.get_num_threads(),
    )
    return y, total, rstd


def backward(
    grad_y: Tensor, grad_total: Tensor | None, total: Tensor, weight: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor]:
    """See torch_ref.rms_norm.backward."""
    rows, width = total.shape
    grad_y, total, weight = grad_y.contiguous(), total.contiguous(), weight.contiguous()
    grad_total = None if grad_total is None else grad_total.contiguous()
    rstd = rstd.contiguous()
    d_x, d_weight = torch.empty_like(total), torch.empty_like(weight)
    _backward(
        grad_y.data_ptr(),
        None if grad_total is None else grad_total.data_ptr(),
        total.data_ptr(),
        total.dtype == torch.bfloat16,
        weight.data_ptr(),
        weight.dtype == torch.bfloat16,
        rstd.data_ptr(),
        rows,
        width,
        d_x.data_ptr(),
        d_weight.data_ptr(),
        torch.get_num_threads(),
    )
    return d_x, d_weight
