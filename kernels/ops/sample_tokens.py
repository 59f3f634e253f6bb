"""Drawing the next token of each sequence."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kernels import dispatch
from kernels.ops.checks import require_dtype, require_shape, require_temperature, vocabulary


class Sampled(NamedTuple):
    """One token a row, with its log-probability before and after top-k and top-p, in nats."""

    tokens: Tensor  # int64 [B]; -1 where the logits are no distribution (NaN, +inf, all -inf)
    logprob: Tensor  # float32 [B], under the tempered, full distribution; NaN with token -1
    cut_logprob: Tensor  # float32 [B], renormalised over what top-k and top-p leave


def sample_tokens(
    logits: Tensor,
    *,
    temperature: float,
    top_k: int = 0,
    top_p: float = 1.0,
    seeds: Tensor,
    positions: Tensor,
    vocab_size: int | None = None,
) -> Sampled:
    """Sample from softmax(logits / temperature) of each row, as a pure function of its seed.

    logits [B, V], any float dtype; seeds, positions int64 [B]: a row's draw depends on its logits,
    seed and position (low 32 bits) only, not on the rest of the batch. Ids from vocab_size on
    never come out. Temperature 0 is greedy, the lowest id of equals, with log-probability 0 (all
    mass is on that token).

    Entries are ranked by logit, then lowest id; top_k > 0 keeps the first k, and top_p < 1 the
    shortest prefix of those whose probability, renormalised, reaches top_p. With nothing cut,
    cut_logprob equals logprob.
    The noise is Philox 4x32-10 keyed by the seed with counter (id // 4, position, 0, 0), word
    id % 4. Backends use the same bits and may differ in the last digit of a logarithm.
    """
    rows = logits.shape[0]
    require_shape("logits", logits, (None, None))
    columns = logits.shape[1]
    temperature, top_k, top_p, vocab_size = require_sampling(
        rows, columns, temperature, top_k, top_p, seeds, positions, vocab_size
    )
    return Sampled(*_op(logits, temperature, top_k, top_p, seeds, positions, vocab_size))


def require_sampling(
    rows: int,
    columns: int,
    temperature: float,
    top_k: int,
    top_p: float,
    seeds: Tensor,
    positions: Tensor,
    vocab_size: int | None,
) -> tuple[float, int, float, int]:
    """(temperature, top_k, top_p, vocab_size) for `rows` draws of `columns` logits.

    ValueError unless all are what sample_tokens takes.
    """
    for name, tensor in (("seeds", seeds), ("positions", positions)):
        require_shape(name, tensor, (rows,))
        require_dtype(name, tensor, torch.int64)
    require_temperature(temperature, zero_allowed=True)
    if top_k < 0:
        raise ValueError(f"top_k must be 0 (off) or positive, got {top_k}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must be in (0, 1], got {top_p}")
    vocab_size = vocabulary(vocab_size, columns)
    return float(temperature), min(top_k, vocab_size), float(top_p), vocab_size


@torch.library.custom_op("lcpo::sample_tokens", mutates_args=())
def _op(
    logits: Tensor,
    temperature: float,
    top_k: int,
    top_p: float,
    seeds: Tensor,
    positions: Tensor,
    vocab_size: int,
) -> tuple[Tensor, Tensor, Tensor]:
    if logits.dtype not in (torch.float32, torch.bfloat16):
        logits = logits.float()
    run = dispatch.select("sample_tokens", logits.device, logits.dtype)
    return run(logits, temperature, top_k, top_p, seeds, positions, vocab_size)


@_op.register_fake
def _(logits, temperature, top_k, top_p, seeds, positions, vocab_size):
    rows = (logits.shape[0],)
    return (
        logits.new_empty(rows, dtype=torch.int64),
        logits.new_empty(rows, dtype=torch.float32),
        logits.new_empty(rows, dtype=torch.float32),
    )
