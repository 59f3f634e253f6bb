"""Packed variable-length batches: sequences end to end, no padding, and the loss denominators.

The weight of a token in the loss is a number per sequence, fixed before the step is cut into
micro-batches, so how the batch is packed cannot change the gradient. Only the public code's
`sum_of_microbatch_means` depends on the packing, by its own definition.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch

from trainer.types import PackedBatch

NORMALISERS = ("token_mean", "seq_mean", "constant", "sum_of_microbatch_means")


def split_by_tokens(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Cut indices 0..n-1 into micro-batches of at most `max_tokens` tokens each, in order.

    A sequence longer than `max_tokens` is refused: it could never be trained on.
    """
    batches: list[list[int]] = []
    used = max_tokens  # so that the first sequence opens a batch
    for index, length in enumerate(lengths):
        if length > max_tokens:
            raise ValueError(
                f"a sequence of {length} tokens does not fit train.micro_batch_tokens={max_tokens}"
            )
        if used + length > max_tokens:
            batches.append([])
            used = 0
        batches[-1].append(index)
        used += length
    return batches


def sequence_weights(
    response_lengths: Sequence[int],
    normaliser: str,
    *,
    constant: int,
    micro_batches: list[list[int]],
) -> torch.Tensor:
    """Weight of each token of each sequence, float32 [N]; the loss is the weighted *sum*.

    token_mean: 1 / all response tokens of the optimizer step. seq_mean: mean over a sequence's
    tokens, then over sequences. constant: over N * `constant` (Dr.GRPO, arXiv 2503.20783).
    sum_of_microbatch_means: each micro-batch's own token mean, summed, as in L1's public code.
    """
    counts = torch.tensor(response_lengths, dtype=torch.float64)
    weights = torch.zeros_like(counts)
    if normaliser == "token_mean":
        weights[:] = 1.0 / counts.sum().clamp(min=1)
    elif normaliser == "seq_mean":
        weights = 1.0 / (len(counts) * counts.clamp(min=1))
    elif normaliser == "constant":
        weights[:] = 1.0 / max(1, len(counts) * constant)
    elif normaliser == "sum_of_microbatch_means":
        for members in micro_batches:
            weights[members] = 1.0 / counts[members].sum().clamp(min=1)
    else:
        raise ValueError(f"unknown loss normaliser {normaliser!r}; there are {NORMALISERS}")
    return weights.float()


def pack(
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    seq_weight: torch.Tensor,
    samples: Sequence[int],
    device: torch.device | str = "cpu",
) -> PackedBatch:
    """Lay prompt + response of each sequence end to end.

    Masks come from lengths, never from token values: a pad id equal to EOS cannot be mistaken.
    The last response token is kept as input as well (its output row is simply not used).
    `seq_weight` is float32 [B], in the order of the sequences.
    """
    ids: list[int] = []
    positions: list[int] = []
    rows: list[int] = []
    targets: list[int] = []
    seq_ids: list[int] = []
    cu_seqlens = [0]
    for index, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        if not prompt:
            raise ValueError(
                f"sequence {samples[index]} has an empty prompt: nothing predicts its first token"
            )
        start = len(ids)
        ids += [*prompt, *response]
        positions += range(len(ids) - start)
        first = start + len(prompt) - 1  # the last prompt token predicts the first response token
        rows += range(first, first + len(response))
        targets += response
        seq_ids += [index] * len(response)
        cu_seqlens.append(len(ids))

    def tensor(values: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)

    return PackedBatch(
        input_ids=tensor(ids, torch.int64),
        position_ids=tensor(positions, torch.int64),
        cu_seqlens=tensor(cu_seqlens, torch.int32),
        max_seqlen=max(b - a for a, b in itertools.pairwise(cu_seqlens)),
        rows=tensor(rows, torch.int64),
        targets=tensor(targets, torch.int64),
        seq_ids=tensor(seq_ids, torch.int32),
        samples=tensor(samples, torch.int64),
        seq_weight=seq_weight.to(device, non_blocking=True),
    )
