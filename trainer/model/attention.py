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
from trainer.model.config import ModelConfig

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class PagedCache:
    """Keys and values of many sequences, in pages; a block table says which are a sequence's."""

    k: Tensor  # [layers, pages, page_size, Hkv, D]
    v: Tensor

    @classmethod
    def empty(
        cls,
        config: ModelConfig,
        pages: int,
        page_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> PagedCache:
        """A cache with nothing in it; on the CPU memory is taken as pages are written."""
        heads, size = config.num_key_value_heads, config.head_dim
        shape = (config.num_hidden_layers, pages, page_size, heads, size)
        return cls(*(torch.empty(shape, dtype=dtype, device=device) for _ in range(2)))

    def write(self, layer: int, slots: Tensor, k: Tensor, v: Tensor) -> None:
        """Put k, v [T, Hkv, D] into `slots` int64 [T]: page · page_size + place in it."""
        for cache, new in ((self.k, k), (self.v, v)):
            cache[layer].flatten(0, 1).index_copy_(0, slots, new.to(cache.dtype))

    def copy_pages(self, source: Tensor, target: Tensor) -> None:
        """Copy pages `source` to pages `target`, int64 [n] each, of all layers."""
        for cache in (self.k, self.v):
            cache[:, target] = cache[:, source]


@dataclass
class PackedAttention:
    """Causal attention within each of the B sequences of a packed batch.

    With a cache (inference only) each layer's k and v also go to its `slots`: a prefill.
    """

    cu_seqlens: Tensor  # int32 [B + 1], best on the CPU: varlen_attention may read its values
    max_seqlen: int
    scale: float
    cache: PagedCache | None = None
    slots: Tensor | None = None  # int64 [T], see PagedCache.write
    prefix: Tensor | None = None  # int32 [B], prompts that stand once: kernels.varlen_attention

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.cache is not None:
            self.cache.write(layer, self.slots, k, v)
        return varlen_attention(
            q, k, v, self.cu_seqlens, self.max_seqlen, scale=self.scale, prefix=self.prefix
        )


@dataclass
class DecodeAttention:
    """One new token for each of B sequences: writes its k, v to the cache, attends over all.

    Position t of row b lies in page block_table[b, t // page_size], slot t % page_size. `lengths`
    are the tokens already cached, so the new ones go to position `lengths` and the caller raises
    its own count by one after the forward pass. Inference only: the cache is written in place. A
    sequence without a column for its new token is the caller's mistake: an error on the CPU.
    """

    cache: PagedCache
    block_table: Tensor  # int32 [B, N]
    lengths: Tensor  # int64 [B]
    scale: float
    _slots: Tensor = field(init=False)  # int64 [B], where the new tokens go
    _attended: Tensor = field(init=False)  # int32 [B], the new token included

    def __post_init__(self) -> None:
        size = self.cache.k.shape[2]
        page = self.block_table.gather(1, (self.lengths // size)[:, None]).squeeze(1)
        self._slots = page * size + self.lengths % size
        self._attended = (self.lengths + 1).int()  # a copy: the caller may count on in place

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.cache.write(layer, self._slots, k, v)
        return paged_decode_attention(
            q,
            self.cache.k[layer],
            self.cache.v[layer],
            self.block_table,
            self._attended,
            scale=self.scale,
        )
