"""The run checks its own kernels: some log-probs once more, by the torch reference in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

import kernels
from trainer.metrics import MicroBatch
from trainer.shards import is_divided
from trainer.types import PackedBatch

if TYPE_CHECKING:
    from trainer.step import Trainer

# Largest |difference| in nats that the compute type explains. Rounding in a whole forward pass is
# about 1e-5 in float32 and, on unlikely tokens, some tenths in bfloat16.
BOUNDS = {"float32": 1e-3, "bfloat16": 1.0}


def self_check(
    trainer: Trainer,
    updates: list[list[MicroBatch]],
    logprobs: Callable[..., tuple[torch.Tensor, torch.Tensor]],
) -> None:
    """Every train.self_check_every steps, compare the first sequence's log-probs to the reference.

    `logprobs` is step.logprobs. Raises FloatingPointError with the worst token, both values and the
    backends, when they differ by more than BOUNDS.
    """
    config = trainer.config
    every, dtype = config.train.self_check_every, config.model.dtype
    every_batch = (micro for batches in updates for micro in batches)
    micro = next((micro for micro in every_batch if len(micro.batch.samples)), None)
    if micro is None or every == 0 or trainer.step % every != 0:
        return
    # Divided masters compute with all ranks or not at all.
    master = trainer.working if is_divided(trainer.model) else trainer.optimizer.masters()
    few, vocab_size = first_sequence(micro.batch), trainer.engine.vocab_size
    with torch.no_grad():
        ours, _ = logprobs(config, trainer.working, few, vocab_size)
        with kernels.override("torch"):
            reference, _ = logprobs(config, master, few, vocab_size)
    gap = (ours - reference).abs().nan_to_num(nan=torch.inf)
    if not len(gap) or gap.max() <= BOUNDS[dtype]:
        return
    at = int(gap.argmax())
    raise FloatingPointError(
        f"self-check: the log-prob of response token {at} (id {int(micro.batch.targets[at])}) is "
        f"{float(ours[at])} and {float(reference[at])} by the torch reference, in {dtype} they may "
        f"differ by {BOUNDS[dtype]}: a kernel is wrong on this machine. It ran "
        f"{kernels.active_backends(ours.device)}; LCPO_BACKEND=torch does without"
    )


def first_sequence(batch: PackedBatch) -> PackedBatch:
    """The first sequence alone, with its prompt: its log-probs depend on nothing else."""
    place = 0 if batch.prefix is None else int((batch.prefix < 0).sum())
    parts = [place] if batch.prefix is None else [0, place]
    bounds = [batch.cu_seqlens[part : part + 2].tolist() for part in parts]
    tokens = torch.cat([torch.arange(*pair) for pair in bounds]).to(batch.rows.device)
    size, count = len(tokens), int((batch.seq_ids == 0).sum())
    return PackedBatch(
        input_ids=batch.input_ids[tokens],
        position_ids=batch.position_ids[tokens],
        cu_seqlens=torch.tensor([0, size], dtype=torch.int32),
        max_seqlen=size,
        prefix=None,
        rows=torch.arange(size - 1 - count, size - 1, device=tokens.device),
        targets=batch.targets[:count],
        seq_ids=batch.seq_ids[:count],
        samples=batch.samples[:1],
        seq_weight=batch.seq_weight[:1],
    )
