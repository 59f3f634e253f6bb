"""RMS norm, rotary embedding and SwiGLU with the roundings of transformers' Qwen2 and Llama."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(
    x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """See ops.rms_norm. The cast back to the input dtype comes before the weight, as in HF."""
    total = x if residual is None else x + residual
    wide = total if total.dtype == torch.float64 else total.float()
    scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    y = weight * (wide * scale).to(total.dtype)
    return y if residual is None else (y, total)


def rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """See ops.rope."""
    return _rotate(q, cos, sin), _rotate(k, cos, sin)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    cos, sin = cos[:, None].to(x.dtype), sin[:, None].to(x.dtype)  # [T, 1, D/2]
    first, second = x.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """See ops.swiglu."""
    return F.silu(gate) * up
