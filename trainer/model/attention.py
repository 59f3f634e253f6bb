"""How a decoder layer attends: over a packed batch (training, prefill) or over a cache (decode).

`Decoder.forward` calls `attend(layer, q, k, v) -> out` with q [T, Hq, D] and k, v [T, Hkv, D]
after the rotation; out is [T, Hq, D]. One decoder thus serves training and rollout.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kernels import paged_decode_attention, varlen_attention

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


@dataclass
class PackedAttention:
    """Causal attention within each of the B sequences of a packed batch.

    With `kv=[]` each layer's (k, v), both [T, Hkv, D], is appended to it: a rollout engine's
    prefill moves them to its cache.
    """

    cu_seqlens: Tensor  # int32 [B + 1], on the CPU or with q
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

    Position t of row b lies in page block_table[b, t // page], slot t % page; a dense cache has one
    page of all slots a row. `lengths` are the tokens already cached, so the new ones go to position
    `lengths` and the caller raises its own count by one after the forward pass. Inference only: the
    cache is written in place. A sequence without a page for its new token is the caller's mistake:
    IndexError on the CPU.
    """

    cache_k: Tensor  # [L, P, page, Hkv, D]
    cache_v: Tensor  # [L, P, page, Hkv, D]
    block_table: Tensor  # int32 [B, N], entries in [0, P)
    lengths: Tensor  # int32 or int64 [B]
    scale: float
    _at: tuple[Tensor, Tensor] = field(init=False)  # int64 [B] each: page and slot to write
    _attended: Tensor = field(init=False)  # int32 [B], the new token included

    def __post_init__(self) -> None:
        rows = torch.arange(self.lengths.shape[0], device=self.lengths.device)
        lengths, page = self.lengths.long(), self.cache_k.shape[2]
        self._at = (self.block_table[rows, lengths // page].long(), lengths % page)
        self._attended = (lengths + 1).int()  # a copy: the caller may count on in place

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        cache_k, cache_v = self.cache_k[layer], self.cache_v[layer]  # [P, page, Hkv, D]
        cache_k[self._at] = k
        cache_v[self._at] = v
        return paged_decode_attention(
            q, cache_k, cache_v, self.block_table, self._attended, scale=self.scale
        )
