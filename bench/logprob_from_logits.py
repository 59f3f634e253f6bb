"""`python -m bench.logprob_from_logits`: log-prob and entropy of given logits."""

from __future__ import annotations

import torch
from torch import Tensor

import kernels
from bench.case import TRAFFIC, Bench, Case, traffic
from bench.harness import main

TEMPERATURE = 0.6


def eager(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """As one writes it: log_softmax, gather, entropy."""
    log_p = (logits.float() / TEMPERATURE).log_softmax(-1)
    return log_p.gather(1, targets[:, None]).squeeze(1), -(log_p.exp() * log_p).sum(-1)


def ours(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The op, on the backend that is chosen automatically."""
    return kernels.logprob_from_logits(logits, targets, temperature=TEMPERATURE)


def make(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Case:
    """The logits are read once forward, and read and written once backward."""
    logits = (3 * torch.randn(shape, device=device)).to(dtype).requires_grad_()
    targets = torch.randint(0, shape[1], shape[:1], device=device)
    return Case(
        (logits, targets),
        {
            "ours": ours,
            TRAFFIC: traffic(
                lambda logits, _: (logits.amax(-1), logits[:, 0].clone()),
                lambda _, __, logits, ___: (logits.clone(), None),
            ),
            "eager": eager,
            "torch.compile": torch.compile(eager, dynamic=False),
        },
        work=((0.0, logits.nbytes), (0.0, 2 * logits.nbytes)),
    )


BENCH = Bench(
    "logprob_from_logits",
    make,
    "T V",
    shapes=[(512, 49_152)],
    quick=[(64, 257)],
    gpu=[(8192, 151_936)],
)
if __name__ == "__main__":
    main(BENCH)
