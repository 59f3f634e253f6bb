"""Packed variable-length batches: sequences end to end, no padding, and the loss denominators.

The weight of a token in the loss is a number per sequence, fixed before the step is cut into
micro-batches, so how the batch is packed cannot change the gradient. Only the public code's
`sum_of_microbatch_means` depends on the packing, by its own definition.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch

from trainer.flops import Work, sequence_work
from trainer.types import PackedBatch

NORMALISERS = ("token_mean", "seq_mean", "constant", "sum_of_microbatch_means")


def micro_batches(
    prompts: Sequence[int],
    responses: Sequence[int],
    groups: Sequence[int] | None,
    max_tokens: int,
    cost: Callable[[Work], float],
    ranks: int = 1,
) -> list[list[int]]:
    """Cut sequences 0..n-1 into as few micro-batches of `max_tokens` tokens as fit, of like cost.

    `prompts` and `responses` are lengths in tokens. With `groups`, ids that do not fall, the
    sequences of a group share one copy of their prompt, so they stay together in parts, most of up
    to a quarter of a micro-batch. Costliest first, each into the cheapest one that has room
    (Graham's LPT rule); rising within a micro-batch. A sequence longer than `max_tokens` is
    refused: it could never be trained on. With several `ranks` their number is a multiple of it,
    and some may be empty.
    """
    parts = []
    for members in _parts(prompts, responses, groups, max_tokens):
        lengths = [responses[i] for i in members]
        work = sequence_work(prompts[members[0]], lengths, shared=groups is not None)
        if work.tokens > max_tokens:
            raise ValueError(
                f"a sequence of {work.tokens} tokens does not fit "
                f"train.micro_batch_tokens={max_tokens}"
            )
        parts.append((cost(work), work.tokens, members))
    parts.sort(key=lambda part: -part[0])
    count = -(-sum(tokens for _, tokens, _ in parts) // max_tokens)
    count += -count % ranks
    while (found := _distribute(parts, count, max_tokens)) is None:
        count += ranks
    return found


def deal(costs: Sequence[float], shares: int) -> list[list[int]]:
    """Places of the items in each of so many shares of like cost, rising within a share."""
    order = sorted(range(len(costs)), key=lambda i: -costs[i])
    return _distribute([(costs[i], 0, [i]) for i in order], shares, 0)


def _parts(
    prompts: Sequence[int],
    responses: Sequence[int],
    groups: Sequence[int] | None,
    max_tokens: int,
) -> list[list[int]]:
    """Sequences that stay together: alone without groups, else parts of a group.

    Large parts repeat few prompts; every fourth group is cut small, to fill what they leave. At the
    paper's sizes that takes 135 micro-batches where large ones alone take 139, small ones 140.
    """
    if groups is None:
        return [[i] for i in range(len(responses))]
    parts: list[list[int]] = []
    started, tokens = 0, 0
    for i, length in enumerate(responses):
        new = i == 0 or groups[i] != groups[i - 1]
        started += new
        if new or tokens + length > max_tokens // (16 if started % 4 == 0 else 4):
            parts.append([])
            tokens = prompts[i]
        parts[-1].append(i)
        tokens += length
    return parts


def _distribute(
    parts: Sequence[tuple[float, int, list[int]]], count: int, max_tokens: int
) -> list[list[int]] | None:
    """`count` micro-batches of (cost, tokens, members); None when some part finds no room."""
    costs, room = [0.0] * count, [max_tokens] * count
    found: list[list[int]] = [[] for _ in range(count)]
    for cost, tokens, members in parts:
        fitting = [b for b in range(count) if room[b] >= tokens]
        if not fitting:
            return None
        b = min(fitting, key=costs.__getitem__)
        costs[b] += cost
        room[b] -= tokens
        found[b] += members
    return [sorted(members) for members in found]


def shares_prompts(
    setting: str | bool, prompts: Sequence[int], responses: Sequence[int], groups: Sequence[int]
) -> bool:
    """train.share_prompts; "auto": when it saves a twentieth of the tokens."""
    if setting != "auto":
        return bool(setting)
    repeated = sum(prompts) - sum(dict(zip(groups, prompts, strict=True)).values())
    return 20 * repeated >= sum(prompts) + sum(responses)


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


def nothing_to_train(device: torch.device | str) -> PackedBatch:
    """A micro-batch of no sequence, with the prompt of one token that the layers want to see.

    For a rank that has none left while others have: its gradients are zero, and it takes part.
    """
    empty = torch.zeros(0, dtype=torch.int64, device=device)
    return PackedBatch(
        input_ids=torch.zeros(1, dtype=torch.int64, device=device),
        position_ids=torch.zeros(1, dtype=torch.int64, device=device),
        cu_seqlens=torch.tensor([0, 1], dtype=torch.int32),
        max_seqlen=1,
        prefix=torch.tensor([-1], dtype=torch.int32),
        rows=empty,
        targets=empty,
        seq_ids=empty.int(),
        samples=empty,
        seq_weight=empty.float(),
    )


def pack(
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    seq_weight: torch.Tensor,
    samples: Sequence[int],
    device: torch.device | str = "cpu",
    groups: Sequence[int] | None = None,
) -> PackedBatch:
    """Lay prompt + response of each sequence end to end.

    With `groups`, ids that do not fall, a prompt stands once for all sequences of its group: all
    prompts first, then all responses. Masks come from lengths, never from token values: a pad id
    equal to EOS cannot be mistaken. The last response token is kept as input as well (its output
    row is simply not used). `seq_weight` is float32 [B], in the order of the sequences.
    """
    for index, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(
                f"sequence {samples[index]} has an empty prompt: nothing predicts its first token"
            )
    keys = range(len(prompts)) if groups is None else groups
    heads = dict(zip(keys, prompts, strict=True))  # the prompts to lay down, in order
    ids: list[int] = []
    positions: list[int] = []
    cu_seqlens = [0]
    ends: dict[int, int] = {}  # row of each prompt's last token
    if groups is not None:
        for key, prompt in heads.items():
            ids += prompt
            positions += range(len(prompt))
            ends[key] = len(ids) - 1
            cu_seqlens.append(len(ids))
    rows: list[int] = []
    targets: list[int] = []
    seq_ids: list[int] = []
    for index, (key, response) in enumerate(zip(keys, responses, strict=True)):
        if groups is None:
            ids += prompts[index]
            positions += range(len(prompts[index]))
            ends[key] = len(ids) - 1
        # The last prompt token predicts the first response token.
        rows += [ends[key], *range(len(ids), len(ids) + len(response) - 1)][: len(response)]
        ids += response
        positions += range(len(heads[key]), len(heads[key]) + len(response))
        targets += response
        seq_ids += [index] * len(response)
        cu_seqlens.append(len(ids))
    places = {key: place for place, key in enumerate(heads)}
    prefix = None if groups is None else [-1] * len(heads) + [places[key] for key in groups]

    def tensor(values: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)

    return PackedBatch(
        input_ids=tensor(ids, torch.int64),
        position_ids=tensor(positions, torch.int64),
        cu_seqlens=torch.tensor(cu_seqlens, dtype=torch.int32),
        max_seqlen=max(b - a for a, b in itertools.pairwise(cu_seqlens)),
        prefix=None if prefix is None else torch.tensor(prefix, dtype=torch.int32),
        rows=tensor(rows, torch.int64),
        targets=tensor(targets, torch.int64),
        seq_ids=tensor(seq_ids, torch.int32),
        samples=tensor(samples, torch.int64),
        seq_weight=seq_weight.to(device, non_blocking=True),
    )
