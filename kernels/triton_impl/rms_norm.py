"""RMS norm of x (+ residual), forward and backward.

    t = x + residual;  r = 1 / sqrt(mean t² + eps);  n = t r, rounded to the input dtype;  y = w n
    with u = w dy:  dt = r (u − n̂ mean(u n̂)) + dtotal,  n̂ = t r;   dw = Σ_rows dy n

The rounding of n before the weight is that of transformers. A program holds whole rows in
registers, so each tensor passes memory once: one row of 1,536, or many short ones (the norms of
Qwen3's heads). The backward pass gives each program a fixed number of rows, whatever the device,
and a row of float32 partial sums for dw; a second launch adds the partials in their order. So dw is
deterministic, and is rounded once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton_impl.common import tile_of_rows, unit_columns

_WARPS = 4
_TILES = 32  # of rows a program walks in the backward pass: its partial is then 3% of the traffic


def forward(
    x: Tensor, weight: Tensor, eps: float, residual: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """(y [T, H], total [T, H] or [0, H] without residual, rstd f32 [T]); see ops.rms_norm."""
    rows, columns = x.shape
    dtype = x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype)
    kept = 0 if residual is None else rows
    total = torch.empty(kept, columns, dtype=dtype, device=x.device)
    dtype = torch.promote_types(dtype, weight.dtype)
    y = torch.empty(rows, columns, dtype=dtype, device=x.device)
    rstd = torch.empty(rows, dtype=torch.float32, device=x.device)
    x = unit_columns(x)
    residual = residual if residual is None else unit_columns(residual)
    tall, wide = tile_of_rows(columns)
    rms_norm_forward_kernel[(triton.cdiv(rows, tall),)](
        x,
        x.stride(0),
        residual,
        0 if residual is None else residual.stride(0),
        weight.contiguous(),
        y,
        total,
        rstd,
        rows,
        COLUMNS=columns,
        eps=eps,
        TALL=tall,
        WIDE=wide,
        num_warps=_WARPS,
    )
    return y, total, rstd


def backward(
    grad_y: Tensor, grad_total: Tensor | None, total: Tensor, weight: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor]:
    """(d_x [T, H], which serves x and residual alike; d_weight [H]); total is x + residual."""
    rows, columns = total.shape
    d_x = torch.empty(rows, columns, dtype=total.dtype, device=total.device)
    tall, wide = tile_of_rows(columns)
    programs = triton.cdiv(rows, tall * _TILES)
    partials = torch.empty(programs, columns, dtype=torch.float32, device=total.device)
    grad_y, total = unit_columns(grad_y), unit_columns(total)
    grad_total = grad_total if grad_total is None else unit_columns(grad_total)
    rms_norm_backward_kernel[(programs,)](
        grad_y,
        grad_y.stride(0),
        grad_total,
        0 if grad_total is None else grad_total.stride(0),
        total,
        total.stride(0),
        weight.contiguous(),
        rstd.contiguous(),
        d_x,
        partials,
        rows,
        COLUMNS=columns,
        TILES=_TILES,
        TALL=tall,
        WIDE=wide,
        num_warps=_WARPS,
    )
    d_weight = torch.empty_like(weight, memory_format=torch.contiguous_format)
    column_sums_kernel[(triton.cdiv(columns, 32),)](
        partials, d_weight, programs, columns, TALL=64, WIDE=32, num_warps=_WARPS
    )
    return d_x, d_weight


@triton.jit(do_not_specialize=["rows"])
def rms_norm_forward_kernel(
    x,
    x_stride,
    residual,
    residual_stride,
    weight,
    y,
    total,
    rstd,
    rows,
    COLUMNS: tl.constexpr,
    eps: tl.constexpr,
    TALL: tl.constexpr,
    WIDE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * TALL + tl.arange(0, TALL)
    column = tl.arange(0, WIDE)[None, :]
    inside = (row < rows)[:, None] & (column < COLUMNS)
    t = tl.load(x + row[:, None] * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    at = row[:, None] * COLUMNS + column
    dtype = total.dtype.element_ty
    if residual is not None:
        other = tl.load(residual + row[:, None] * residual_stride + column, mask=inside, other=0.0)
        rounded = (t + other.to(tl.float32)).to(dtype)
        tl.store(total + at, rounded, mask=inside)
        t = rounded.to(tl.float32)
    r = tl.rsqrt(tl.sum(t * t, 1) / COLUMNS + eps)
    tl.store(rstd + row, r, mask=row < rows)
    normed = (t * r[:, None]).to(dtype).to(tl.float32)
    w = tl.load(weight + column, mask=column < COLUMNS, other=0.0).to(tl.float32)
    tl.store(y + at, (w * normed).to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows"])
def rms_norm_backward_kernel(
    grad_y,
    grad_y_stride,
    grad_total,
    grad_total_stride,
    total,
    total_stride,
    weight,
    rstd,
    d_x,
    partials,
    rows,
    COLUMNS: tl.constexpr,
    TILES: tl.constexpr,
    TALL: tl.constexpr,
    WIDE: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, WIDE)[None, :]
    w = tl.load(weight + column, mask=column < COLUMNS, other=0.0).to(tl.float32)
    d_w = tl.zeros((TALL, WIDE), tl.float32)
    dtype = d_x.dtype.element_ty
    for tile in range(TILES):
        row = (program * TILES + tile) * TALL + tl.arange(0, TALL)
        inside = (row < rows)[:, None] & (column < COLUMNS)
        line = row[:, None]
        dy = tl.load(grad_y + line * grad_y_stride + column, mask=inside, other=0.0).to(tl.float32)
        t = tl.load(total + line * total_stride + column, mask=inside, other=0.0).to(tl.float32)
        r = tl.load(rstd + row, mask=row < rows, other=0.0)[:, None]
        normed = t * r
        d_w += dy * normed.to(dtype).to(tl.float32)
        u = w * dy
        mean = (tl.sum(u * normed, 1) / COLUMNS)[:, None]
        dx = r * (u - normed * mean)
        if grad_total is not None:
            at = line * grad_total_stride + column
            dx += tl.load(grad_total + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(d_x + line * COLUMNS + column, dx.to(dtype), mask=inside)
    at = program * COLUMNS + tl.arange(0, WIDE)
    tl.store(partials + at, tl.sum(d_w, 0), mask=tl.arange(0, WIDE) < COLUMNS)


@triton.jit(do_not_specialize=["rows"])
def column_sums_kernel(partials, sums, rows, columns, TALL: tl.constexpr, WIDE: tl.constexpr):
    column = tl.program_id(0) * WIDE + tl.arange(0, WIDE)
    total = tl.zeros((TALL, WIDE), tl.float32)
    for start in range(0, rows, TALL):
        row = start + tl.arange(0, TALL)
        inside = (row < rows)[:, None] & (column < columns)[None, :]
        at = row.to(tl.int64)[:, None] * columns + column[None, :]
        total += tl.load(partials + at, mask=inside, other=0.0)
    tl.store(sums + column, tl.sum(total, 0).to(sums.dtype.element_ty), mask=column < columns)
