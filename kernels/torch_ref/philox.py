"""Philox 4x32-10 (Salmon et al., SC'11, "Parallel random numbers: as easy as 1, 2, 3").

A pure function of (key, counter): no state, so a draw does not depend on what else was drawn. The
same integer algorithm is in csrc/philox.h and is what Triton's `tl.philox` computes.
"""

from __future__ import annotations

import torch
from torch import Tensor

_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_MASK = 0xFFFFFFFF
ROUNDS = 10


def _mul(a: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a · x for x < 2**32 in int64, by halves so that nothing overflows."""
    low, high = (x & 0xFFFF) * a, (x >> 16) * a  # each < 2**48
    middle = high + (low >> 16)
    return middle >> 16, ((middle & 0xFFFF) << 16) | (low & 0xFFFF)


def philox(seed: Tensor, counter: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Four uint32 words, as int64 tensors in [0, 2**32), for each broadcast element.

    seed: int64, its low 32 bits are key word 0 and its high ones word 1. counter: int64 words, of
    which the low 32 bits count.
    """
    k0, k1 = seed & _MASK, (seed >> 32) & _MASK
    c0, c1, c2, c3 = (word & _MASK for word in counter)
    for _ in range(ROUNDS):
        high0, low0 = _mul(_M0, c0)
        high1, low1 = _mul(_M1, c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return c0, c1, c2, c3


def vocabulary_bits(seeds: Tensor, positions: Tensor, vocab_size: int) -> Tensor:
    """Random bits for each vocabulary entry of each row: int64 [B, vocab_size] in [0, 2**32).

    Entry j takes word j % 4 of the call with counter (j // 4, position, 0, 0).
    """
    quad = torch.arange((vocab_size + 3) // 4, device=seeds.device)[None, :]
    zero = torch.zeros_like(quad)
    words = philox(seeds[:, None], (quad, positions[:, None], zero, zero))  # 4 of [B, ceil(V/4)]
    words = torch.broadcast_tensors(*words)
    return torch.stack(words, -1).flatten(1)[:, :vocab_size]
