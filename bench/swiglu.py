"""`python -m bench.swiglu`: silu(gate) · up."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

import kernels
from bench.case import TRAFFIC, Bench, Case, traffic
from bench.harness import main


def eager(gate: Tensor, up: Tensor) -> Tensor:
    """As transformers writes it."""
    return F.silu(gate) * up


def make(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Case:
    """Two tensors in and one out; three in and two out in the backward pass."""
    gate, up = (torch.randn(shape, device=device).to(dtype).requires_grad_() for _ in range(2))
    size = gate.numel() * dtype.itemsize
    return Case(
        (gate, up),
        {
            "ours": kernels.swiglu,
            TRAFFIC: traffic(torch.add, lambda dy, gate, up: (dy + gate, up.clone())),
            "eager": eager,
            "torch.compile": torch.compile(eager, dynamic=False),
        },
        work=((0.0, 3 * size), (0.0, 5 * size)),
    )


BENCH = Bench(
    "swiglu",
    make,
    "T I",
    shapes=[(4096, 576), (4096, 1536)],
    quick=[(64, 33)],
    gpu=[(16_384, 8960)],
)
if __name__ == "__main__":
    main(BENCH)
