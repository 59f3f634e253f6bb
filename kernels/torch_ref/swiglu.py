"""silu(gate) · up in plain torch, and its gradient."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def forward(gate: Tensor, up: Tensor) -> Tensor:
    """See ops.swiglu."""
    return F.silu(gate) * up


def backward(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """grad · up · s · (1 + gate · (1 − s)) and grad · gate · s, with s = σ(gate)."""
    wide = torch.promote_types(gate.dtype, torch.float32)  # float64 stays (gradcheck)
    grad, g, u = grad.to(wide), gate.to(wide), up.to(wide)
    s = g.sigmoid()
    silu = g * s
    return (grad * u * (s + silu * (1 - s))).to(gate.dtype), (grad * silu).to(up.dtype)
