"""Continuous batching on the training weights: no copy, no sync, one model definition.

scheduler.py decides who runs, runner.py runs them, and this file is the loop in between. A sample
is a pure function of its request: whatever the batch size, order, page size or preemption, the
same tokens come out (see docs/rollout.md for what the vendor GEMM may change). Caches live inside
one call, so none survives a weight update.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from trainer.model import Decoder
from trainer.rollout.drawing import Drawing
from trainer.rollout.forcing import advance
from trainer.rollout.pages import PagePool
from trainer.rollout.requests import Request, Sampling
from trainer.rollout.runner import Runner
from trainer.rollout.scheduler import RESERVE, RolloutStats, Sample, Scheduler
from trainer.types import Completion

PREFILL_TOKENS = 8192  # of one packed prefill: what bounds its memory

Drawn = list[tuple[list[int], list[float]]]  # of each row: its next tokens and their log-probs


class RolloutEngine(Drawing):
    """Draws completions from `model`. `vocab_size` is the tokenizer's: ids above never come out.

    `pages` of `page_size` tokens hold the cache; 0 makes room for a full batch at its longest.
    `stats` are those of the last call.
    """

    def __init__(
        self,
        model: Decoder,
        *,
        eos_id: int,
        vocab_size: int,
        batch_size: int,
        page_size: int = 16,
        pages: int = 0,
        cuda_graphs: bool = False,
    ) -> None:
        self.model, self.eos_id = model, eos_id
        self.vocab_size, self.batch_size = vocab_size, batch_size
        self.page_size, self.pages = page_size, pages
        self.cuda_graphs = cuda_graphs
        self.stats = RolloutStats()

    @torch.no_grad()
    def stream(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
        on_token: Callable[[int, int], None] | None = None,
    ) -> Iterator[tuple[int, Completion]]:
        """(index of the request, completion) as samples end, others still under way.

        `on_progress(done, total)` is called every few tokens, `on_token(index, token)` for each one
        of each request; an exception they raise stops the work. Raises FloatingPointError on NaN
        logits, and ValueError for a request that is empty or larger than the cache.
        """
        pool = self.pool_for(requests)
        scheduler = Scheduler(
            requests, pool, batch_size=self.batch_size, prefill_tokens=PREFILL_TOKENS
        )
        if not requests:
            return
        runner = Runner(
            self.model,
            sampling,
            eos_id=self.eos_id,
            vocab_size=self.vocab_size,
            rows=scheduler.batch_size,
            pages=pool.pages,
            page_size=self.page_size,
            pages_per_row=max(pool.pages_for(_most_tokens(r)) for r in requests),
            cuda_graphs=self.cuda_graphs,
        )
        while scheduler.left:
            for samples, drawn in rounds(scheduler, runner):
                ended = self._record(samples, drawn, runner, on_token)
                if ended:
                    scheduler.finish(ended)
                    runner.keep(scheduler.running)
                self.stats = scheduler.stats()
                on_progress(len(requests) - scheduler.left, len(requests))
                for sample in ended:
                    yield sample.index, self._completion(sample)

    def pool_for(self, requests: Sequence[Request]) -> PagePool:
        """Pages for these requests; ValueError for one that could never run."""
        pool = PagePool(self.pages, self.page_size)
        needed = [pool.pages_for(_most_tokens(request)) for request in requests]
        for index, request in enumerate(requests):
            if not request.token_ids or request.max_new_tokens < 1:
                raise ValueError(
                    f"request {index} has {len(request.token_ids)} prompt tokens and "
                    f"max_new_tokens={request.max_new_tokens}; both must be at least 1"
                )
            if self.pages and needed[index] > self.pages:
                raise ValueError(
                    f"request {index} may take {_most_tokens(request)} tokens, {needed[index]} "
                    f"pages of {self.page_size}, but rollout.pages={self.pages}"
                )
        if self.pages:
            return pool
        longest = sorted(needed, reverse=True)[: self.batch_size]
        if not longest:
            return pool
        # With what the scheduler keeps in reserve, and the prompt of a group that starts in parts.
        more = math.ceil(RESERVE * len(longest)) + longest[0]
        return PagePool(sum(longest) + more, self.page_size)

    def _record(
        self,
        samples: Sequence[Sample],
        drawn: Drawn,
        runner: Runner,
        on_token: Callable[[int, int], None] | None,
    ) -> list[Sample]:
        """Hands the tokens to their samples; those that have ended."""
        ended, replaced = [], []
        for sample, (tokens, logprobs) in zip(samples, drawn, strict=True):
            ends = self.eos_id in tokens
            if ends:  # what follows was drawn ahead, or not at all
                tokens = tokens[: tokens.index(self.eos_id) + 1]
            if min(tokens) < 0:
                raise FloatingPointError("the model's logits are NaN: the weights are damaged")
            if sample.request.forcing is None:
                done = ends or len(sample.tokens) + len(tokens) >= sample.limit
            else:
                token, forced, done = advance(sample, *tokens, self.eos_id)  # one: _steps_ahead
                if forced:
                    replaced.append((sample.row, token))
                    logprobs = [0.0]
                tokens = [token]
            sample.tokens += tokens
            sample.logprobs += logprobs[: len(tokens)]
            if done:
                ended.append(sample)
            if on_token is not None:
                for token in tokens:
                    on_token(sample.index, token)
        if replaced:
            runner.replace(replaced)
        return ended

    def _completion(self, sample: Sample) -> Completion:
        truncated = sample.tokens[-1] != self.eos_id
        return Completion(sample.tokens, sample.logprobs, truncated)


def rounds(scheduler: Scheduler, runner: Runner) -> Iterator[tuple[list[Sample], Drawn]]:
    """New samples with their first tokens, as long as any start; then a few steps of all rows."""
    while True:
        rows = len(scheduler.running)
        admission = scheduler.admit()
        if not admission.started:
            break
        first = runner.start(admission, rows)
        yield [sample for sample, _ in admission.started], _read(*first)
    running = scheduler.running
    if not running:
        return
    steps = _steps_ahead(running, scheduler.pool.page_size, runner.steps_ahead)
    grown = scheduler.grow(steps)
    if scheduler.running is not running:  # some were preempted
        running = scheduler.running
        runner.keep(running)
    runner.extend(grown)
    drawn = runner.decode(len(running), steps)
    scheduler.stepped(steps)
    yield running, _read(*drawn)


def _steps_ahead(running: Sequence[Sample], page_size: int, wanted: int) -> int:
    """Decode steps before anyone looks: at most `wanted`, a page, or up to the nearest limit."""
    if wanted == 1 or any(sample.request.forcing for sample in running):
        return 1
    nearest = min(sample.limit - len(sample.tokens) for sample in running)
    return min(wanted, page_size, nearest)


def _read(tokens: Tensor, logprobs: Tensor) -> Drawn:
    """Of each row, from [steps, rows]; waits for the device once."""
    return list(zip(tokens.t().tolist(), logprobs.t().tolist(), strict=True))


def _most_tokens(request: Request) -> int:
    return len(request.token_ids) + request.max_new_tokens
