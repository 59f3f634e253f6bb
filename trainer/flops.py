"""FLOPs of the decoder from its configuration: what plans, balances and utilisation are counted in.

A multiply-add is two. Products and attention are counted, element-wise work is not; attention only
over the pairs that the causal mask keeps.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from trainer.model import ModelConfig

BACKWARD = 2  # times the forward pass: a product each for the input's gradient and the weight's
# FLOP/s that a large product reaches in bfloat16, and in float32 without TF32.
STATED = {"H200": (800e12, 60e12), "H100": (800e12, 60e12), "A100": (280e12, 19e12)}


@dataclass(frozen=True)
class Work:
    """What a forward pass sees. Example, "p p r r": Work(tokens=4, pairs=10, rows=2)."""

    tokens: int  # through the layers
    pairs: int  # of a query and a key that it attends to, in one layer and head
    rows: int  # through the head

    def __add__(self, other: Work) -> Work:
        return Work(self.tokens + other.tokens, self.pairs + other.pairs, self.rows + other.rows)


def sequence_work(prompt: int, responses: Sequence[int], *, shared: bool) -> Work:
    """Of `responses` (their lengths) to one prompt of `prompt` tokens; shared: it is there once."""
    pairs = sum(n * prompt + n * (n + 1) // 2 for n in responses)
    copies = 1 if shared else len(responses)
    return Work(
        copies * prompt + sum(responses),
        copies * prompt * (prompt + 1) // 2 + pairs,
        sum(responses),
    )


def packed_work(cu_seqlens: torch.Tensor, prefix: torch.Tensor | None, rows: int) -> Work:
    """Of a packed batch: cu_seqlens int32 [B + 1], prefix int32 [B], both on the CPU."""
    lengths = cu_seqlens.diff().tolist()
    before = [0] * len(lengths)
    if prefix is not None:
        before = [lengths[b] if b >= 0 else 0 for b in prefix.tolist()]
    pairs = sum(n * p + n * (n + 1) // 2 for n, p in zip(lengths, before, strict=True))
    return Work(sum(lengths), pairs, rows)


def forward_flops(config: ModelConfig, work: Work) -> int:
    """Of one forward pass; forward and backward are 1 + BACKWARD times that."""
    width = config.num_attention_heads * config.head_dim  # of q and of o's input
    kv_width = config.num_key_value_heads * config.head_dim
    projections = config.hidden_size * (2 * width + 2 * kv_width)
    mlp = 3 * config.hidden_size * config.intermediate_size
    layer = 2 * (projections + mlp) * work.tokens + 4 * width * work.pairs
    head = 2 * config.hidden_size * config.vocab_size * work.rows
    return config.num_hidden_layers * layer + head


@functools.cache
def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large product in `dtype`: stated for known GPUs, else measured once, briefly."""
    if device.type == "cuda":
        for name, (low, full) in STATED.items():
            if name in torch.cuda.get_device_name(device):
                return low if dtype == torch.bfloat16 else full
    m, k, n = 512, 1024, 1024  # in cache: larger ones are slower on CPUs
    a, b = (torch.randn(shape, device=device).to(dtype) for shape in ((m, k), (k, n)))
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        torch.mm(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * m * k * n / best
