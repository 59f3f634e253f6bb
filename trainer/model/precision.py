"""Mixed precision: float32 masters, and a copy of them in bfloat16 that computes."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from trainer.model.decoder import Decoder


def has_bfloat16(device: str) -> bool:
    """Whether `device` multiplies bfloat16 matrices in hardware ("cpu" or "cuda")."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    features = torch.backends.cpu.get_cpu_capability()
    return "AVX512" in features and torch.cpu._is_avx512_bf16_supported()


def working_copy(master: Decoder, dtype: torch.dtype) -> Decoder:
    """The model that computes for `master`, in `dtype`: `master` itself where that is its own.

    Whenever a backward pass has made a gradient of the copy, it moves to the master's `grad`, in
    float32: micro-batches are summed there, and the copy holds no gradients. Its weights are set by
    the optimizer (optim.py), which is given both.
    """
    if master.head_weight.dtype == dtype:
        return master
    copy = empty_copy(master, dtype)
    send_gradients(copy, master)
    return copy


def empty_copy(master: Decoder, dtype: torch.dtype) -> Decoder:
    """A decoder of the same sizes on the same device, its weights still to be set."""
    empty = Decoder(master.config, device="meta", dtype=dtype)  # no initial values to be drawn
    return empty.to_empty(device=master.head_weight.device)


def send_gradients(copy: Decoder, master: Decoder) -> None:
    """Makes each gradient of `copy` move to the master's, as working_copy says."""
    for working, parameter in zip(copy.parameters(), master.parameters(), strict=True):
        working.register_post_accumulate_grad_hook(partial(_add_to, parameter, []))


def _add_to(parameter: Tensor, kept: list[Tensor], working: Tensor) -> None:
    gradient, working.grad = working.grad, None
    if parameter.grad is not None:
        parameter.grad.add_(gradient)
    elif kept:
        parameter.grad = kept[0].copy_(gradient)
    else:
        parameter.grad = gradient.to(parameter.dtype)
        if parameter.device.type == "cpu":  # whose allocator would fetch fresh pages at each step
            kept.append(parameter.grad)
