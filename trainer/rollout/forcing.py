"""Forced text within a sample: its tokens go through decode steps like drawn ones.

So nothing is prefilled again, and a preempted sample goes on behind what was forced.
"""

from __future__ import annotations

from trainer.rollout.scheduler import Sample


def advance(sample: Sample, drawn: int, eos_id: int) -> tuple[int, bool, bool]:
    """(next token, is it forced rather than drawn, is the sample done) of a sample with forcing."""
    forcing, place = sample.request.forcing, len(sample.tokens) + 1
    if sample.pending:
        return sample.pending.popleft(), True, place >= sample.limit
    if drawn != eos_id and drawn not in forcing.stop_ids and place < sample.limit:
        return drawn, False, False
    most = sample.request.max_new_tokens
    more = forcing.then([*sample.tokens, drawn]) if place < most else None
    if more is None:
        return drawn, False, True
    kept = place - 1 if more.replace else place
    sample.limit = min(most, kept + len(more.token_ids) + more.draw)
    sample.pending.extend(more.token_ids)
    if more.replace:
        return sample.pending.popleft(), True, place >= sample.limit
    return drawn, False, False
