"""Prompts on their way into the cache: packed, their common beginning once, and its slots."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import NamedTuple

import torch
from torch import Tensor


class PackedPrompts(NamedTuple):
    """T tokens of B sequences: the prompts, or their common beginning and what is left of each."""

    ids: Tensor  # int64 [T]
    positions: Tensor  # int64 [T], in the prompt
    cu_seqlens: Tensor  # int32 [B + 1]
    prefix: Tensor | None  # int32 [B], see kernels.varlen_attention
    sources: Tensor  # int64 [W], the token whose keys and values go to
    targets: Tensor  # int64 [W], this slot
    last: Tensor  # int64 [prompts], the last token of each


def pack_prompts(
    prompts: Sequence[Sequence[int]],
    block_table: Sequence[Sequence[int]],
    page_size: int,
    *,
    share: bool,
) -> PackedPrompts:
    """With `share` what all prompts begin with is computed once and written to the pages of each.

    block_table[i] holds the pages of prompts[i]. Each prompt keeps a token of its own, whose final
    state is wanted.
    """
    common = 0
    if share and len(prompts) > 1:
        tuples = [tuple(prompt) for prompt in prompts]
        first, last = min(tuples), max(tuples)  # all others lie between them
        alike = (a == b for a, b in zip(first[:-1], last[:-1], strict=False))
        common = sum(takewhile(bool, alike))
    ids, positions = list(prompts[0][:common]), list(range(common))
    sizes = [common] if common else []
    sources: list[int] = []
    targets: list[int] = []
    for prompt, pages in zip(prompts, block_table, strict=True):
        sources += [*range(common), *range(len(ids), len(ids) + len(prompt) - common)]
        targets += [pages[i // page_size] * page_size + i % page_size for i in range(len(prompt))]
        ids += prompt[common:]
        positions += range(common, len(prompt))
        sizes.append(len(prompt) - common)
    cu_seqlens = torch.tensor([0, *sizes]).cumsum(0).to(torch.int32)
    own = cu_seqlens[1:] if not common else cu_seqlens[2:]
    prefix = torch.tensor([-1] + [0] * len(prompts), dtype=torch.int32) if common else None
    whole = (torch.tensor(x) for x in (ids, positions))
    places = (torch.tensor(x) for x in (sources, targets))
    return PackedPrompts(*whole, cu_seqlens, prefix, *places, own.long() - 1)
