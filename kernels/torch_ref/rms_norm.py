"""RMS norm with the roundings of transformers' Qwen2 and Llama, and its gradient."""

from __future__ import annotations

import torch
from torch import Tensor


def forward(
    x: Tensor, weight: Tensor, eps: float, residual: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """(y [T, H], total = x + residual or [0, H] without one, rstd [T]); see ops.rms_norm."""
    total = x if residual is None else x + residual
    wide = _wide(total)
    rstd = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    # The cast back to the input dtype comes before the weight, as in HF.
    y = weight * (wide * rstd).to(total.dtype)
    return y, x.new_empty(0, x.shape[1]) if residual is None else total, rstd.squeeze(-1)


def backward(
    grad_y: Tensor, grad_total: Tensor | None, total: Tensor, weight: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor]:
    """(d_x [T, H], which serves x and residual alike, d_weight [H]); total is x + residual.

    With n = total · rstd and u = weight · grad_y:
    d_x = rstd · (u − n · mean(u · n)) + grad_total, d_weight = Σ_t grad_y · n
    """
    grad, n = _wide(grad_y), _wide(total) * rstd[:, None]
    u = grad * weight
    d_x = rstd[:, None] * (u - n * (u * n).mean(-1, keepdim=True))
    if grad_total is not None:
        d_x = d_x + grad_total
    d_weight = (grad * n.to(total.dtype)).sum(0)
    return d_x.to(total.dtype), d_weight.to(weight.dtype)


def _wide(x: Tensor) -> Tensor:
    """float64 stays (gradcheck); everything else computes in float32."""
    return x if x.dtype == torch.float64 else x.float()
