"""Finds the flash-attn package, an optional extra: it is built from source, for hours."""

from __future__ import annotations

import functools
import importlib
from types import ModuleType

import torch
from torch import Tensor


@functools.cache
def flash_attn() -> ModuleType | None:
    """`flash_attn.flash_attn_interface`, or None where the package does not import."""
    try:
        return importlib.import_module("flash_attn.flash_attn_interface")
    except ImportError:  # absent, or built for another torch
        return None


def takes(q: Tensor) -> bool:
    """Whether FlashAttention-2 kernels take q [.., D]: 16 bits, D <= 256 by eights, from sm_80."""
    half = q.dtype in (torch.bfloat16, torch.float16)
    fits = q.shape[-1] % 8 == 0 and q.shape[-1] <= 256
    return half and fits and torch.cuda.get_device_capability(q.device) >= (8, 0)
