"""Out of memory in an update: its gradient is dropped, and it is made again in smaller parts.

Each micro-batch is cut in two halves that keep the weights of their sequences, so the sum of the
gradients is the same. Once only: a second failure says which sizes did not fit, and the run ends at
its last checkpoint. Later steps start with whole micro-batches again, as how a step is cut must not
depend on what happened before a resume.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from trainer.metrics import MicroBatch, Outcome
from trainer.packing import pack
from trainer.shards import is_divided
from trainer.types import Rollout

if TYPE_CHECKING:
    from trainer.step import Trainer

# torch has no class of its own for a failed allocation on the CPU; these are of Linux and Windows.
CPU_MESSAGES = ("can't allocate memory", "not enough memory")


def learn_within_memory(
    trainer: Trainer,
    learn: Callable[[list[MicroBatch]], list[Outcome]],
    number: int,
    batches: list[MicroBatch],
    rollouts: Sequence[Rollout],
) -> tuple[list[MicroBatch], list[Outcome]]:
    """What `learn(batches)` gives for optimizer step `number`, and the micro-batches it took.

    Those are `batches` or their halves. Raises MemoryError with the sizes when the halves do not
    fit either.
    """
    try:
        return batches, learn(batches)
    except (RuntimeError, MemoryError) as error:
        # Passes of divided masters meet those of the other ranks: none can make more alone.
        if not is_out_of_memory(error) or is_divided(trainer.model):
            raise
    # Out here the error is gone, and with it the tensors that its trace holds.
    for module in (trainer.model, trainer.working):
        module.zero_grad(set_to_none=True)
    # The first update's own pass makes its old log-probs, so that the ratio is exactly 1.
    keep_old = number > 0 or trainer.config.algorithm.old_logprob == "rollout"
    halves = [half for micro in batches for half in halve(micro, rollouts, keep_old=keep_old)]
    try:
        return halves, learn(halves)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryError(
            f"an update ran out of memory with micro-batches of up to {largest(batches)} tokens, "
            f"and with their halves of up to {largest(halves)}: lower train.micro_batch_tokens, "
            f"or memory.activations=full ({error})"
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on any device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return any(message in str(error) for message in CPU_MESSAGES)


def largest(batches: Sequence[MicroBatch]) -> int:
    """Tokens of the largest micro-batch."""
    return max(len(micro.batch.input_ids) for micro in batches)


def halve(micro: MicroBatch, rollouts: Sequence[Rollout], *, keep_old: bool) -> list[MicroBatch]:
    """The micro-batch in two with about as many response tokens; itself if that cannot be."""
    batch = micro.batch
    members = batch.samples.tolist()
    if len(members) <= 1:
        return [micro]
    sizes = torch.tensor([len(rollouts[i].completion.token_ids) for i in members])
    before = int((2 * sizes.cumsum(0) <= sizes.sum()).sum())
    cut = min(max(before, 1), len(members) - 1)
    halves = []
    for part in (slice(0, cut), slice(cut, len(members))):
        chosen = [rollouts[i] for i in members[part]]
        inside = (batch.seq_ids >= part.start) & (batch.seq_ids < part.stop)
        smaller = pack(
            [r.prompt.token_ids for r in chosen],
            [r.completion.token_ids for r in chosen],
            batch.seq_weight[part],
            members[part],
            batch.rows.device,
            None if batch.prefix is None else [r.prompt.group for r in chosen],
        )
        old = micro.old[inside] if keep_old and micro.old is not None else None
        ref = None if micro.ref is None else micro.ref[inside]
        halves.append(MicroBatch(smaller, old, ref, micro.passes))
    return halves
