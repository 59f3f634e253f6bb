"""`python -m bench.sample_tokens`: one token of each row, with its log-probability."""

from __future__ import annotations

import torch
from torch import Tensor

import kernels
from bench.case import Bench, Case
from bench.harness import main

TEMPERATURE = 0.6


def eager(logits: Tensor, seeds: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """As one writes it, with torch's own generator: softmax, multinomial, gather."""
    p = (logits.float() / TEMPERATURE).softmax(-1)
    token = p.multinomial(1)
    return token.squeeze(1), p.gather(1, token).squeeze(1).log()


def sampler(**cuts: float):
    """The op with or without top-k and top-p."""
    return lambda logits, seeds, positions: kernels.sample_tokens(
        logits, temperature=TEMPERATURE, seeds=seeds, positions=positions, **cuts
    )


def make(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Case:
    """The logits pass once."""
    logits = (3 * torch.randn(shape, device=device)).to(dtype)
    seeds = torch.arange(shape[0], device=device)
    return Case(
        (logits, seeds, torch.zeros_like(seeds)),
        {
            "ours": sampler(),
            "ours, top-k 50, top-p 0.95": sampler(top_k=50, top_p=0.95),
            "eager": eager,
        },
        work=((0.0, logits.nbytes),),
    )


BENCH = Bench(
    "sample_tokens",
    make,
    "B V",
    shapes=[(64, 49_152)],
    quick=[(4, 257)],
    gpu=[(256, 151_936)],
)
if __name__ == "__main__":
    main(BENCH)
