"""Who runs when, and in which pages: policy only, no tensors.

A sample waits, runs in a row of the batch, and finishes once. Samples of one prompt form a group:
the prompt is prefilled once and its pages are shared. Groups with long samples start first, or the
rollout would end waiting for one of them. When pages run out, the youngest sample goes back to
waiting and is later computed again from its tokens: with counter-based sampling it goes on exactly
as it would have.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from trainer.rollout.pages import PagePool
from trainer.rollout.requests import Request

# Starting samples costs a forward pass of its own: wait for so large a share of empty rows.
ADMIT_SHARE = 1 / 16
# Free pages to leave for each running sample that will soon want one.
RESERVE = 1 / 4


@dataclass(eq=False)
class Sample:
    """One request on its way."""

    index: int
    request: Request
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    block_table: list[int] = field(default_factory=list)
    row: int = -1  # the runner's
    base: int = 0  # tokens in the cache, less the decode steps done by all
    full_at: int = -1  # decode step before which it needs another page
    limit: int = 0  # tokens at which its stage ends
    pending: deque[int] = field(default_factory=deque)  # forced tokens still to come

    @property
    def running(self) -> bool:
        return bool(self.block_table)


@dataclass(eq=False)
class Group:
    """Samples of one prompt that wait; `token_ids` are what is to be prefilled for them."""

    token_ids: Sequence[int]
    members: deque[Sample]
    block_table: list[int] = field(default_factory=list)  # of the cached prompt
    state: Any = None  # the runner's, of the cached prompt


@dataclass
class Admission:
    """What starts now: prompts to prefill, then samples in new rows, in this order."""

    prefill: list[tuple[Group, list[int]]] = field(default_factory=list)  # with its block table
    started: list[tuple[Sample, Group]] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)  # pages (from, to), after prefill


@dataclass(frozen=True)
class RolloutStats:
    """Of one call of the engine."""

    idle_share: float = 0.0  # rows without a sample, or behind its end, mean over decode steps
    pages_peak: int = 0
    slots_per_token: float = 0.0  # cache slots in use / tokens of running samples, mean over steps
    preempted: int = 0
    decode_steps: int = 0
    prefilled: int = 0  # tokens


class Scheduler:
    """Keeps the running samples, oldest first, and every page accounted for."""

    def __init__(
        self,
        requests: Sequence[Request],
        pool: PagePool,
        *,
        batch_size: int,
        prefill_tokens: int,
    ) -> None:
        self.pool, self.prefill_tokens = pool, prefill_tokens
        self.batch_size = min(batch_size, len(requests))
        self.running: list[Sample] = []
        self.waiting = _groups(requests)
        self.left = len(requests)  # samples not finished
        self._waiting = len(requests)  # samples in `waiting`
        self._step = 0
        self._live = 0  # tokens that running samples have in the cache
        self._idle = self._slots = 0.0
        self._preempted = self._prefilled = 0

    def admit(self) -> Admission:
        """Starts what has room: rows, pages, and one chunk of at most `prefill_tokens`.

        A prompt is never split: a longer one is a chunk of its own. Call again until nothing
        starts; new samples are behind the others in `running`.
        """
        admission, tokens = Admission(), 0
        vacant = self.batch_size - len(self.running)
        if self.running and vacant < min(self._waiting, ADMIT_SHARE * self.batch_size):
            return admission
        if not self.running:  # nobody will free a page: the first in line gets them all
            for group in list(self.waiting)[1:]:
                self._drop_prompt(group)
        while self.waiting and len(self.running) < self.batch_size:
            group = self.waiting[0]
            if not group.block_table:
                size = len(group.token_ids)
                pages = self.pool.pages_for(size)
                full = tokens > 0 and tokens + size > self.prefill_tokens
                if full or (self.running and not self._room(pages + 1)):
                    break
                group.block_table = self.pool.take(pages)
                admission.prefill.append((group, group.block_table))
                tokens += size
            self._start_members(group, admission)
            if group.members:
                break
            self.waiting.popleft()
        self._prefilled += tokens
        return admission

    def grow(self, steps: int) -> list[Sample]:
        """Makes room for `steps` more tokens (at most a page) in each row.

        Returns the samples with a new last page. When no page is free, prompts of waiting samples
        leave the cache, then the youngest samples: `running` is then shorter.
        """
        grown, stop = [], self._step + steps
        for sample in [s for s in self.running if s.full_at < stop]:
            while sample.running and not self.pool.free:
                cached = next((g for g in self.waiting if g.block_table), None)
                if cached is not None:
                    self._drop_prompt(cached)
                else:
                    self._preempt_youngest()
            if sample.running:
                sample.block_table += self.pool.take(1)
                sample.full_at += self.pool.page_size
                grown.append(sample)
        return [sample for sample in grown if sample.running]

    def stepped(self, steps: int) -> None:
        """Counts decode steps of all running samples, done right after this."""
        rows = len(self.running)
        self._step += steps
        self._idle += steps * (1 - rows / self.batch_size)
        for _ in range(steps):
            self._live += rows
            if self._live:
                self._slots += self.pool.used * self.pool.page_size / self._live

    def finish(self, samples: Iterable[Sample]) -> None:
        """Frees rows and pages of samples that have ended."""
        for sample in samples:
            # Its last token never comes to the cache, unless decoding ran on behind it.
            needed = len(sample.request.token_ids) + len(sample.tokens) - 1
            self._idle += (sample.base + self._step - needed) / self.batch_size
            self._leave(sample)
            self.left -= 1
        self.running = [sample for sample in self.running if sample.running]

    def stats(self) -> RolloutStats:
        """Figures of the work so far."""
        steps = max(1, self._step)
        return RolloutStats(
            idle_share=self._idle / steps,
            pages_peak=self.pool.peak,
            slots_per_token=self._slots / steps,
            preempted=self._preempted,
            decode_steps=self._step,
            prefilled=self._prefilled,
        )

    def _room(self, pages: int) -> bool:
        return self.pool.free >= pages + RESERVE * len(self.running)

    def _start_members(self, group: Group, admission: Admission) -> None:
        length = len(group.token_ids)
        while group.members and len(self.running) < self.batch_size:
            if self.running and not self._room(1):
                break
            sample = group.members.popleft()
            if group.members and self.pool.free:
                sample.block_table, source = self.pool.fork(group.block_table, length)
                if source is not None:
                    admission.copies.append((source, sample.block_table[-1]))
            else:  # the last one, or one that would have no page: it takes over the prompt's
                sample.block_table = self.pool.adopt(group.block_table, length)
                group.block_table = []
            sample.base = length - self._step
            sample.full_at = len(sample.block_table) * self.pool.page_size - sample.base
            self.running.append(sample)
            admission.started.append((sample, group))
            self._waiting -= 1
            self._live += length
            if not group.block_table:
                break

    def _leave(self, sample: Sample) -> None:
        self.pool.release(sample.block_table)
        sample.block_table = []
        self._live -= sample.base + self._step

    def _preempt_youngest(self) -> None:
        assert len(self.running) > 1, "a lone sample fits: the engine has checked it"
        sample = self.running[-1]
        self._leave(sample)
        self.running = self.running[:-1]  # another list: that is how the engine notices
        self._preempted += 1
        self._waiting += 1
        again = [*sample.request.token_ids, *sample.tokens]
        self.waiting.appendleft(Group(again, deque([sample])))

    def _drop_prompt(self, group: Group) -> None:
        """Frees the pages of a prompt that is cached for samples yet to start."""
        self.pool.release(group.block_table)
        group.block_table, group.state = [], None


def _groups(requests: Sequence[Request]) -> deque[Group]:
    """One group a prompt, those with long samples first; in each the long ones first."""
    by_prompt: dict[tuple[int, ...], list[Sample]] = {}
    for index, request in enumerate(requests):
        stage = request.forcing.draw if request.forcing else request.max_new_tokens
        limit = min(stage, request.max_new_tokens)
        by_prompt.setdefault(request.token_ids, []).append(Sample(index, request, limit=limit))

    def expected(sample: Sample) -> int:
        return sample.request.expected or sample.request.max_new_tokens

    groups = []
    for token_ids, members in by_prompt.items():
        members.sort(key=expected, reverse=True)
        groups.append(Group(token_ids, deque(members)))
    groups.sort(key=lambda group: expected(group.members[0]), reverse=True)
    return deque(groups)
