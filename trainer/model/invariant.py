"""`rollout.batch_invariant`: a row's result does not depend on how many rows there are.

A vendor GEMM picks its inner loops by the number of rows, so the last bit of a token's activations
may differ between decoding (a row a sequence), prefill and training. Here each block of ROWS rows
is a product of its own, always of the same shape, the last one filled up. With the row kernels and
the attention of the compiled library, which never depended on it, rollout and trainer then agree
bit for bit in float32 on the CPU. What it costs is in docs/rollout.md.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels import PolicyStats, linear_logprob, linear_policy_loss
from trainer.model.decoder import Decoder

ROWS = 32


def make_batch_invariant(model: Decoder) -> None:
    """Computes all linear layers of `model` in row blocks; parameters and names stay."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.__class__ = BlockLinear


class BlockLinear(nn.Linear):
    """nn.Linear in blocks of ROWS rows; float32, no autocast."""

    def forward(self, x: Tensor) -> Tensor:
        """[T, in] to [T, out]."""
        return _BlockProduct.apply(x, self.weight, self.bias)


def block_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x · weightᵀ + bias, x [T, in], weight [out, in]; one product for each ROWS rows."""
    blocks = _filled_up(x).unflatten(0, (-1, ROWS))  # [blocks, ROWS, in]
    out = torch.bmm(blocks, weight.t().expand(len(blocks), -1, -1)).flatten(0, 1)[: len(x)]
    return out if bias is None else out + bias


def block_logprob(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, temperature: float, vocab_size: int
) -> tuple[Tensor, Tensor]:
    """kernels.linear_logprob, a chunk for each ROWS rows."""
    logprob, entropy = linear_logprob(
        _filled_up(hidden),
        weight,
        _filled_up(targets),
        temperature=temperature,
        vocab_size=vocab_size,
        chunk_tokens=ROWS,
    )
    return logprob[: len(hidden)], entropy[: len(hidden)]


def block_policy_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    old: Tensor | None,
    ref: Tensor | None,
    advantage: Tensor,
    seq_weight: Tensor,
    seq_ids: Tensor,
    **settings: Any,
) -> tuple[Tensor, PolicyStats, Tensor]:
    """kernels.linear_policy_loss, likewise; the rows that fill up are a sequence of weight 0."""
    last = seq_weight.shape[0]
    loss, stats, logprob = linear_policy_loss(
        _filled_up(hidden),
        weight,
        _filled_up(targets),
        None if old is None else _filled_up(old),
        None if ref is None else _filled_up(ref),
        F.pad(advantage, (0, 1)),
        F.pad(seq_weight, (0, 1)),
        F.pad(seq_ids, (0, -len(seq_ids) % ROWS), value=last),
        chunk_tokens=ROWS,
        **settings,
    )
    return loss, stats, logprob[: len(hidden)]


class _BlockProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return block_linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        x, weight = ctx.saved_tensors
        return grad @ weight, grad.t() @ x, grad.sum(0) if ctx.has_bias else None


def _filled_up(x: Tensor) -> Tensor:
    """x [T, ...] with rows of zeros up to a multiple of ROWS."""
    missing = -len(x) % ROWS
    return F.pad(x, (0, 0) * (x.ndim - 1) + (0, missing)) if missing else x
