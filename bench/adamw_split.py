"""`python -m bench.adamw_split`: one step of AdamW, and the bfloat16 copy that computes."""

from __future__ import annotations

import torch
from torch import Tensor

import kernels
from bench.case import Bench, Case
from bench.harness import main

ORDER = {"lr": 1e-3, "eps": 1e-8, "weight_decay": 0.1}


def make(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Case:
    """16 bytes of each weight in and 12 out."""
    master = torch.randn(shape, device=device)
    grad, exp_avg, exp_avg_sq = (torch.rand(shape, device=device) for _ in range(3))
    step, skip = torch.ones((), device=device), torch.tensor(False, device=device)
    weight, low = kernels.split_bits(master)

    def ours(weight: Tensor, low: Tensor, *rest: Tensor) -> None:
        columns = ([x] for x in (weight, low, *rest, step))
        kernels.adamw_split_(*columns, **ORDER, beta1=0.9, beta2=0.999, skip=skip)

    adamw = torch.optim.AdamW([torch.nn.Parameter(master)], **ORDER, fused=True)

    def fused_and_copied(weight: Tensor, low: Tensor, grad: Tensor, *_: Tensor) -> None:
        (leaf,) = adamw.param_groups[0]["params"]
        leaf.grad = grad
        adamw.step()
        weight.copy_(leaf.detach())

    return Case(
        (weight, low, grad, exp_avg, exp_avg_sq),
        {"ours": ours, "torch.optim.AdamW(fused) and a copy": fused_and_copied},
        work=((0.0, 28 * weight.numel()),),
    )


BENCH = Bench(
    "adamw_split",
    make,
    "N",
    shapes=[(576 * 1536,), (49_152 * 576,)],
    quick=[(1025,)],
    gpu=[(8960 * 1536,), (151_936 * 1536,)],
    dtypes=[torch.bfloat16],
)
if __name__ == "__main__":
    main(BENCH)
