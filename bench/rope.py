"""`python -m bench.rope`: rotation of queries and keys."""

from __future__ import annotations

import torch
from torch import Tensor

import kernels
from bench.case import TRAFFIC, Bench, Case, traffic
from bench.harness import main


def eager(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """The halves of each head, turned and put together again."""
    cos, sin = cos[:, None].to(q.dtype), sin[:, None].to(q.dtype)

    def rotate(x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)

    return rotate(q), rotate(k)


def make(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Case:
    """q, k and the angles in, q and k out; the same in the backward pass."""
    tokens, heads, kv_heads, size = shape
    q, k = (torch.randn(tokens, n, size, device=device).to(dtype) for n in (heads, kv_heads))
    angle = torch.rand(tokens, size // 2, device=device)
    cos, sin = angle.cos(), angle.sin()
    moved = 2 * (q.numel() + k.numel()) * dtype.itemsize + 2 * angle.nbytes
    return Case(
        (q.requires_grad_(), k.requires_grad_(), cos, sin),
        {
            "ours": kernels.rope,
            TRAFFIC: traffic(
                lambda q, k, *_: (q.clone(), k.clone()),
                lambda dq, dk, *_: (dq.clone(), dk.clone(), None, None),
            ),
            "eager": eager,
            "torch.compile": torch.compile(eager, dynamic=False),
        },
        work=((0.0, moved), (0.0, moved)),
    )


BENCH = Bench(
    "rope",
    make,
    "T Hq Hkv D",
    shapes=[(4096, 9, 3, 64), (4096, 12, 2, 128)],
    quick=[(64, 2, 1, 16)],
    gpu=[(16_384, 12, 2, 128)],
)
if __name__ == "__main__":
    main(BENCH)
