"""`python -m bench.rms_norm`: the norm with the residual addition before it, as layers call it."""

from __future__ import annotations

import torch
from torch import Tensor

import kernels
from bench.case import TRAFFIC, Bench, Case, traffic
from bench.harness import main

EPS = 1e-6


def eager(x: Tensor, weight: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    """As transformers writes it."""
    total = x + residual
    wide = total.float()
    scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPS)
    return weight * (wide * scale).to(total.dtype), total


def make(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Case:
    """Four tensors [T, H] pass in each direction; the weight is nothing to them."""
    x, residual = (torch.randn(shape, device=device).to(dtype).requires_grad_() for _ in range(2))
    weight = torch.randn(shape[1], device=device).to(dtype).requires_grad_()
    moved = 4 * x.numel() * dtype.itemsize
    return Case(
        (x, weight, residual),
        {
            "ours": lambda x, weight, residual: kernels.rms_norm(x, weight, EPS, residual),
            TRAFFIC: traffic(
                lambda x, _, residual: (x.clone(), residual.clone()),
                lambda dy, dt, x, *_: (torch.addcmul(dy, dt, x), None, None),
            ),
            "eager": eager,
            "torch.compile": torch.compile(eager, dynamic=False),
        },
        work=((0.0, moved), (0.0, moved)),
    )


BENCH = Bench(
    "rms_norm",
    make,
    "T H",
    shapes=[(4096, 576), (4096, 1536)],
    quick=[(64, 33)],
    gpu=[(16_384, 1536)],
)
if __name__ == "__main__":
    main(BENCH)
