"""How a decoder layer attends: over a packed batch (training, prefill) or over a cache (decode).

`Decoder.forward` calls `attend(layer, q, k, v) -> out` with q [T, Hq, D] and k, v [T, Hkv, D]
after the rotation; out is [T, Hq, D]. One decoder thus serves training and rollout.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kernels import decode_attention, varlen_attention

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


@dataclass
class PackedAttention:
    """Causal attention within each of the B sequences of a packed batch.

    With `kv=[]` each layer's (k, v), both [T, Hkv, D], is appended to it: a rollout engine's
    prefill moves them to its cache.
    """

    cu_seqlens: Tensor  # int32 [B + 1], best on the CPU: varlen_attention may read its values
    max_seqlen: int
    scale: float
    kv: list[tuple[Tensor, Tensor]] | None = None

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.kv is not None:
            assert len(self.kv) == layer, "a capture serves one forward pass"
            self.kv.append((k, v))
        return varlen_attention(q, k, v, self.cu_seqlens, self.max_seqlen, scale=self.scale)


@dataclass
class CachedAttention:
    """One new token for each of B sequences: writes its k, v to the cache, attends over all.

    `lengths` are the tokens already cached, so the new ones go to column `lengths` and the caller
    raises its own count by one after the forward pass. Inference only: the cache is written in
    place. Slots not yet written must be finite (zeros, or left from an earlier sequence). A
    sequence whose cache is full (lengths == S) is the caller's mistake: IndexError on the CPU.
    """

    cache_k: Tensor  # [L, B, S, Hkv, D]
    cache_v: Tensor  # [L, B, S, Hkv, D]
    lengths: Tensor  # int32 or int64 [B]
    scale: float
    _at: tuple[Tensor, Tensor] = field(init=False)  # int64 [B] each: row and column to write
    _attended: Tensor = field(init=False)  # [B], the new token included

    def __post_init__(self) -> None:
        rows = torch.arange(self.lengths.shape[0], device=self.lengths.device)
        self._at = (rows, self.lengths.long())
        self._attended = self.lengths + 1  # a copy: the caller may count on in place

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        cache_k, cache_v = self.cache_k[layer], self.cache_v[layer]  # [B, S, Hkv, D]
        cache_k[self._at] = k
        cache_v[self._at] = v
        return decode_attention(q, cache_k, cache_v, self._attended, scale=self.scale)
