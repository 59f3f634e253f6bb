"""FLOPs of the decoder from its configuration: what plans, balances and utilisation are counted in.

A multiply-add is two. Products and attention are counted, element-wise work is not; attention only
over the pairs that the causal mask keeps.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

import kernels
from trainer.model import ModelConfig

BACKWARD = 2  # times the forward pass: a product each for the input's gradient and the weight's
COPIED = 256 << 20  # bytes of the tensor whose copy is timed: no cache holds it


class Peak(NamedTuple):
    """What a GPU reaches: FLOP/s of large products, bytes/s of its memory, read and write counted.

    `full` is float32 without TF32.
    """

    bfloat16: float
    full: float
    memory: float


# By a part of the device's name; the first that fits. Products: what large ones are measured at by
# others, four fifths of the data sheet's dense figure. Memory: the data sheet's.
STATED = {
    "H200": Peak(800e12, 60e12, 4.8e12),
    "H100": Peak(800e12, 60e12, 3.35e12),
    "A100-SXM4-40GB": Peak(280e12, 19e12, 1.555e12),
    "A100": Peak(280e12, 19e12, 2.04e12),
    "RTX 4090": Peak(150e12, 60e12, 1.008e12),
}


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


def stated_peak(device_name: str) -> Peak | None:
    """The row of STATED for a device of this name; None for one that is not there."""
    return next((peak for name, peak in STATED.items() if name in device_name), None)


@functools.cache
def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large product in `dtype`: stated for known GPUs, else measured once, briefly."""
    if device.type == "cuda":
        peak = stated_peak(torch.cuda.get_device_name(device))
        if peak is not None:
            return peak.bfloat16 if dtype == torch.bfloat16 else peak.full
    m, k, n = 512, 1024, 1024  # in cache: larger ones are slower on CPUs
    a, b = (torch.randn(shape, device=device).to(dtype) for shape in ((m, k), (n, k)))
    best = float("inf")
    for run in 5 * (torch.nn.functional.linear, kernels.linear):  # a pass has products of both
        start = time.perf_counter()
        run(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * m * k * n / best


@functools.cache
def copy_rate(device: torch.device) -> float:
    """Bytes/s of a large copy, read and write counted, measured briefly."""
    source = torch.ones(COPIED // 4, device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        target.copy_(source)
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * COPIED / best
