"""How long the responses are, in tokens, from their ids."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kernels import dispatch
from kernels.ops.checks import require_cu_seqlens, require_dtype, require_shape


class Lengths(NamedTuple):
    """Token counts of B responses. n_total is LCPO's n_y; n_think + n_answer = n_total."""

    n_total: Tensor  # int32 [B], up to and with the first EOS
    n_think: Tensor  # int32 [B], up to and with the first end of thinking; n_total without one
    n_answer: Tensor  # int32 [B]
    truncated: Tensor  # bool [B], no EOS


def count_lengths(
    ids: Tensor, cu_seqlens: Tensor, *, eos_id: int, think_end: tuple[int, ...]
) -> Lengths:
    """Count the tokens of packed responses: ids int64 [T], cu_seqlens int32 [B + 1].

    `think_end` are the ids of `</think>`, one or several; only an occurrence that lies whole
    within n_total of its own sequence counts. Empty sequences count 0 and are truncated.
    Integers: every backend gives the same. Raises ValueError for an empty pattern, wrong dtypes,
    and bounds that do not cover `ids`.
    """
    require_shape("ids", ids, (None,))
    require_dtype("ids", ids, torch.int64)
    require_dtype("cu_seqlens", cu_seqlens, torch.int32)
    if not think_end:
        raise ValueError("think_end is empty: give the token ids that end the thinking part")
    return Lengths(*_op(ids, cu_seqlens, eos_id, list(think_end)))


@torch.library.custom_op("lcpo::count_lengths", mutates_args=())
def _op(
    ids: Tensor, cu_seqlens: Tensor, eos_id: int, think_end: list[int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    require_cu_seqlens(cu_seqlens, ids.shape[0])
    run = dispatch.select("count_lengths", ids.device, ids.dtype)
    return run(ids, cu_seqlens, eos_id, think_end)


@_op.register_fake
def _(ids, cu_seqlens, eos_id, think_end):
    shape = (cu_seqlens.shape[0] - 1,)
    counts = tuple(ids.new_empty(shape, dtype=torch.int32) for _ in range(3))
    return (*counts, ids.new_empty(shape, dtype=torch.bool))
