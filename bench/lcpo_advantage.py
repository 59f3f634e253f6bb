"""`python -m bench.lcpo_advantage`: rewards and group advantages of a step's samples."""

from __future__ import annotations

import torch

import kernels
from bench.case import Bench, Case
from bench.harness import main
from kernels.torch_ref import lcpo_advantage as ref

REWARD = kernels.RewardSpec("linear", alpha_exact=0.0003, alpha_max=0.0003, delta=0.5)


def make(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Case:
    """Some thousands of scalars: what counts is the number of launches."""
    samples, groups = shape
    correct = torch.randint(0, 2, (samples,), device=device).float()
    n_y, n_gold = (torch.randint(1, 4000, (samples,), device=device).int() for _ in range(2))
    group = (torch.arange(samples, device=device) * groups // samples).int()
    tensors = (correct, n_y, n_gold, torch.ones_like(group), group)
    settings = (groups, "linear", 0.0003, 0.0003, 0.5, "grpo", 1e-6)
    return Case(
        tensors,
        {
            "ours": lambda *tensors: kernels.lcpo_advantage(*tensors, groups, reward=REWARD),
            "eager": lambda *tensors: ref.lcpo_advantage(*tensors, *settings),
        },
        work=((0.0, 8 * correct.nbytes),),
    )


BENCH = Bench(
    "lcpo_advantage",
    make,
    "N G",
    shapes=[(2048, 128)],
    quick=[(32, 4)],
    gpu=[(2048, 128)],
    dtypes=[torch.float32],
    gpu_dtypes=[torch.float32],
)
if __name__ == "__main__":
    main(BENCH)
