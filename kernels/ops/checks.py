"""Argument checks shared by the ops. Those that read values do so on the CPU only."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def require_shape(name: str, tensor: Tensor, shape: tuple[int | None, ...]) -> None:
    """ValueError unless `tensor` has this shape; None stands for any size."""
    if tensor.shape == shape:  # the common case, and some calls are as short as this check
        return
    same = tensor.ndim == len(shape) and all(
        want in (None, got) for want, got in zip(shape, tensor.shape, strict=True)
    )
    if not same:
        want = ["any" if size is None else size for size in shape]
        raise ValueError(f"{name} has shape {list(tensor.shape)}, expected {want}")


def require_dtype(name: str, tensor: Tensor, *dtypes: torch.dtype) -> None:
    """ValueError unless the dtype of `tensor` is one of `dtypes`."""
    if tensor.dtype not in dtypes:
        raise ValueError(f"{name} is {tensor.dtype}, expected {' or '.join(map(str, dtypes))}")


def deciding_dtype(*tensors: Tensor | None) -> torch.dtype:
    """The dtype to choose a backend by: that of the first tensor, or one that fewer can run.

    float32 and bfloat16 mix freely; float64 or float16 anywhere leaves less to choose from.
    """
    dtypes = [x.dtype for x in tensors if x is not None]
    for dtype in dtypes:
        if dtype not in (torch.float32, torch.bfloat16):
            return dtype
    return dtypes[0]


def require_range(name: str, tensor: Tensor, low: int, stop: int) -> None:
    """ValueError unless low <= every value < stop. Skipped where reading would stall a device."""
    if tensor.device.type != "cpu" or tensor.numel() == 0:
        return
    least, most = (int(v) for v in tensor.aminmax())
    if least < low or most >= stop:
        bad = least if least < low else most
        raise ValueError(f"{name} holds {bad}, expected values in [{low}, {stop})")


def require_groups(heads: int, kv_heads: int) -> None:
    """ValueError unless each key/value head serves the same number of query heads."""
    if kv_heads == 0 or heads % kv_heads:
        raise ValueError(f"{heads} query heads cannot share {kv_heads} key/value heads evenly")


def require_cu_seqlens(cu_seqlens: Tensor, total: int) -> None:
    """ValueError unless cu_seqlens is int32 [B + 1] and, on the CPU, rises from 0 to `total`."""
    require_dtype("cu_seqlens", cu_seqlens, torch.int32)
    if cu_seqlens.ndim != 1 or cu_seqlens.shape[0] < 1:
        raise ValueError(f"cu_seqlens has shape {list(cu_seqlens.shape)}, expected [B + 1]")
    if cu_seqlens.device.type != "cpu":
        return
    bounds = cu_seqlens.tolist()
    if bounds[0] != 0 or bounds[-1] != total or bounds != sorted(bounds):
        shown = bounds if len(bounds) <= 8 else [*bounds[:4], "...", *bounds[-3:]]
        raise ValueError(f"cu_seqlens must rise from 0 to {total} tokens, got {shown}")


def require_temperature(temperature: float, *, zero_allowed: bool = False) -> None:
    """ValueError unless the temperature is finite and positive, or 0 where that is allowed."""
    if not math.isfinite(temperature) or temperature < 0 or (temperature == 0 and not zero_allowed):
        raise ValueError(f"temperature must be finite and positive, got {temperature}")


def vocabulary(vocab_size: int | None, columns: int) -> int:
    """`vocab_size`, or all columns for None; ValueError unless 1 <= vocab_size <= columns."""
    if vocab_size is None:
        return columns
    if not 1 <= vocab_size <= columns:
        raise ValueError(f"vocab_size={vocab_size} does not fit {columns} columns of logits")
    return vocab_size


def autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in autocast's dtype where it is on, else as they are."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    return tuple(x.to(torch.get_autocast_dtype(device)) for x in tensors)


def as_rows(x: Tensor) -> Tensor:
    """x [..., H] as [T, H]."""
    return x if x.ndim == 2 else x.reshape(-1, x.shape[-1])


def shaped(rows: Tensor, shape: torch.Size) -> Tensor:
    """rows [T, H] in the shape that as_rows took from it; itself where that is the same.

    Not a view then: in-place changes of a view that a custom Function returns are an error.
    """
    return rows if rows.shape == shape else rows.view(shape)
