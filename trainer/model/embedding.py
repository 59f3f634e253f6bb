"""Rows by index, their gradient summed in float32: token embedding, states that meet the head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Embedding(nn.Embedding):
    """nn.Embedding for any dtype of the weight.

    On the CPU torch adds up a token's rows in the weight's own dtype, and in bfloat16 a sum of some
    hundred rows, as of a line break's, no longer grows. Here it is rounded once, when it is done.
    """

    def forward(self, ids: Tensor) -> Tensor:
        """Rows [T, H] of ids int64 [T]."""
        return take_rows(self.weight, ids)


def take_rows(x: Tensor, index: Tensor) -> Tensor:
    """x[index], x [N, H], index int64 [R]; gradients of a row taken often are summed in float32."""
    return _Rows.apply(x, index)


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Tensor) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.rows, ctx.dtype = len(weight), weight.dtype
        return weight[ids]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (ids,) = ctx.saved_tensors
        wide = grad.to(torch.promote_types(grad.dtype, torch.float32))
        total = torch.ops.aten.embedding_dense_backward(wide, ids, ctx.rows, -1, False)
        return total.to(ctx.dtype), None
