"""Mixed precision: float32 master weights, bfloat16 matrix products."""

from __future__ import annotations

import contextlib

import torch


def mixed(device: torch.device, dtype: str) -> contextlib.AbstractContextManager:
    """Autocast to bfloat16 for dtype "bfloat16", nothing for "float32" (model.dtype)."""
    if dtype == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16)
