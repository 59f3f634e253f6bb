"""The policy loss under a linear head in one pass: three products where autograd needs four.

All that the loss needs of a token is known in the forward pass, so its gradient by the logits is
made while they are still there: a block of rows keeps its tiles, reduces them to log-probs, and
turns each tile into its gradient. Products, row passes and the loss are those of linear_logprob and
policy_loss, so the numbers are theirs too.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kernels.torch_ref import linear_logprob as head
from kernels.torch_ref import policy_loss as policy


def linear_policy_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    old: Tensor | None,
    ref: Tensor | None,
    advantage: Tensor,
    seq_weight: Tensor,
    seq_ids: Tensor,
    temperature: float,
    vocab_size: int,
    chunk_tokens: int,
    gemm_dtype: torch.dtype,
    clip_low: float,
    clip_high: float,
    kl_coef: float,
    kl_grad: str,
    entropy_coef: float,
    need_hidden: bool,
    need_weight: bool,
    *,
    rows_kernel: Callable[..., tuple[Tensor, Tensor]] = head.logprob_rows,
    rows_backward: Callable[..., None] = head.logprob_rows_backward,
    loss_kernel: Callable[..., tuple[Tensor, ...]] = policy.policy_loss,
    product: Callable[..., None] = head.product,
    merge: Callable[..., tuple[Tensor, Tensor]] = head.merge,
    logits_product: Callable[[Tensor, Tensor, Tensor], Tensor] = head.logits_product,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(loss [], d_hidden [R, H], d_weight [V, H], stats [6], logprob [R]).

    A gradient not needed has no rows. They are summed in float32; d_hidden is then cast. See
    ops.linear_policy_loss.
    """
    dtype, low = head.statistics_dtype(gemm_dtype), hidden.to(gemm_dtype)
    rows, columns = head.tiles(low, vocab_size, chunk_tokens)
    heads = [weight[at].to(gemm_dtype) for at in columns]
    workspace = low.new_empty(rows[0].stop * vocab_size if rows else 0)
    d_hidden = torch.zeros_like(hidden if need_hidden else hidden[:0], dtype=dtype)
    d_weight = torch.empty_like(weight if need_weight else weight[:0], dtype=dtype)
    d_weight[vocab_size if rows else 0 :] = 0.0  # of padding, or of everything
    losses, stats = [], []
    logprobs = [d_hidden.new_empty(0)]
    for r in rows:
        size = r.stop - r.start
        tiles = [
            head.tile_logits(low[r], part, workspace[size * at.start :], logits_product)
            for at, part in zip(columns, heads, strict=True)
        ]
        parts = [
            rows_kernel(tile, head.within(targets[r], at), temperature)
            for at, tile in zip(columns, tiles, strict=True)
        ]
        logprob, of_rows = merge(parts, targets[r], columns[0].stop, temperature)
        loss, d_logprob, d_entropy, of_loss = loss_kernel(
            logprob,
            logprob if old is None else old[r],
            None if ref is None else ref[r],
            of_rows[:, 1] - of_rows[:, 2],
            advantage,
            seq_weight,
            seq_ids[r],
            clip_low,
            clip_high,
            kl_coef,
            kl_grad,
            entropy_coef,
        )
        losses.append(loss)
        logprobs.append(logprob)
        stats.append(of_loss)
        if not (need_hidden or need_weight):
            continue
        grads = (d_logprob, d_entropy if entropy_coef != 0 else None)
        for at, part, tile in zip(columns, heads, tiles, strict=True):
            rows_backward(tile, targets[r] - at.start, of_rows, *grads, temperature)
            if need_hidden:
                product(tile, part, d_hidden[r], add=True)
            if need_weight:
                product(tile.t(), low[r], d_weight[at], add=r.start > 0)
    if not rows:
        losses, stats = [d_hidden.new_zeros(())], [d_hidden.new_zeros(policy.STATS)]
    return (
        torch.stack(losses).sum(),
        d_hidden.to(hidden.dtype),
        d_weight,
        combined(torch.stack(stats)),
        torch.cat(logprobs),
    )


def combined(stats: Tensor) -> Tensor:
    """[6] of all tokens from [blocks, 6] of policy_loss: sums, and the largest |ratio − 1|."""
    total = stats.sum(0)
    total[policy.RATIO_MAX_DEV] = stats[:, policy.RATIO_MAX_DEV].amax()
    return total
