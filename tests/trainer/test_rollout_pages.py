"""Pages and scheduling as a game without tensors: hypothesis plays the model and ends samples."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.rollout.pages import PagePool
from trainer.rollout.requests import Request
from trainer.rollout.scheduler import Scheduler

PAGE_SIZES = st.sampled_from([1, 2, 3, 8])  # 1: every token opens a page; 8: most fit into one
# Prompts from a small alphabet, so that groups form; limits small, so that thousands of games fit.
REQUESTS = st.lists(
    st.builds(
        Request,
        token_ids=st.integers(1, 9).map(lambda n: tuple(range(n))),
        seed=st.just(0),
        max_new_tokens=st.integers(1, 12),
        expected=st.integers(0, 12),
    ),
    min_size=1,
    max_size=20,
)


@given(st.integers(1, 9), PAGE_SIZES, st.integers(1, 30))
def test_forks_share_full_pages_and_own_their_last(forks, page_size, length):
    pool = PagePool(200, page_size)
    prompt = pool.take(pool.pages_for(length))
    tables = []
    for _ in range(forks):
        table, source = pool.fork(prompt, length)
        assert source == (prompt[-1] if length % page_size else None)
        tables.append(table)
    tables.append(pool.adopt(prompt, length))
    for table in tables:
        assert table[: length // page_size] == prompt[: length // page_size]
        assert length < len(table) * page_size <= length + page_size
    last = [table[-1] for table in tables]
    assert len(set(last)) == len(last) and not set(last) & set(prompt[: length // page_size])
    assert pool.used == length // page_size + len(tables) == pool.peak
    for table in tables:
        pool.release(table)
    assert pool.free == 200 and pool.peak > 0


def test_a_page_cannot_be_freed_twice():
    pool = PagePool(2, 4)
    pages = pool.take(2)
    pool.release(pages)
    with pytest.raises(AssertionError):
        pool.release(pages)
    with pytest.raises(AssertionError):
        pool.share(pages)
    with pytest.raises(AssertionError):
        pool.take(3)


class Game:
    """Plays the engine's part: tokens carry their sample and place, so a mix-up would show.

    `slots` is the cache; whoever reads a slot must find there what it wrote, or its prompt.
    """

    def __init__(self, requests, ends, *, pages, page_size, batch_size, chunk, steps):
        self.requests, self.ends, self.steps = requests, ends, steps
        self.pool = PagePool(pages, page_size)
        self.scheduler = Scheduler(requests, self.pool, batch_size=batch_size, prefill_tokens=chunk)
        self.slots: dict[int, object] = {}
        self.finished: list = []
        self.started: list[int] = []
        self.batch_size, self.chunk = batch_size, chunk

    def run(self):
        for _ in range(10_000):
            if not self.scheduler.left:
                break
            self.round()
        assert not self.scheduler.left, "it does not end"
        assert self.pool.used == 0 and not self.scheduler.running and not self.scheduler.waiting
        return self.finished

    def round(self):
        scheduler = self.scheduler
        while True:
            before = list(scheduler.running)
            admission = scheduler.admit()
            if not admission.started:
                break
            self.prefill(admission)
            new = [sample for sample, _ in admission.started]
            assert scheduler.running == before + new
            self.started += [sample.index for sample in new]
            self.draw(new)
        if not scheduler.running:
            return
        room = min(s.limit - len(s.tokens) for s in scheduler.running)
        steps = min(self.steps, room, self.pool.page_size)
        scheduler.grow(steps)
        assert scheduler.running, "the oldest is never preempted"
        self.check_tables()
        for _ in range(steps):
            for sample in scheduler.running:
                self.write(sample.block_table, self.length(sample), sample.tokens[-1])
            self.draw(scheduler.running, finish=False)
        scheduler.stepped(steps)
        self.finish(scheduler.running)

    def prefill(self, admission):
        sizes = [len(group.token_ids) for group, _ in admission.prefill]
        assert len(sizes) <= 1 or sum(sizes) <= self.chunk
        for group, table in admission.prefill:
            for place, token in enumerate(group.token_ids):
                self.write(table, place, token)
        for source, target in admission.copies:
            for place in range(self.pool.page_size):
                key = source * self.pool.page_size + place
                self.slots[target * self.pool.page_size + place] = self.slots.get(key)
        for sample, _ in admission.started:
            self.check_contents(sample)

    def write(self, table, place, token):
        page, offset = table[place // self.pool.page_size], place % self.pool.page_size
        self.slots[page * self.pool.page_size + offset] = token

    def length(self, sample):
        return len(sample.request.token_ids) + len(sample.tokens) - 1

    def check_contents(self, sample):
        expected = [*sample.request.token_ids, *sample.tokens]
        size = self.pool.page_size
        found = [
            self.slots[sample.block_table[i // size] * size + i % size]
            for i in range(len(expected))
        ]
        assert found == expected

    def check_tables(self):
        """Room for the next token, and the page it goes to is in nobody else's table."""
        holders = Counter(page for s in self.scheduler.running for page in s.block_table)
        assert len(self.scheduler.running) <= self.batch_size
        for sample in self.scheduler.running:
            page = sample.block_table[self.length(sample) // self.pool.page_size]
            assert holders[page] == 1

    def draw(self, samples, finish=True):
        for sample in samples:
            if not self.ended(sample):
                sample.tokens.append((sample.index, len(sample.tokens)))
        if finish:
            self.finish(samples)

    def ended(self, sample):
        return len(sample.tokens) == min(self.ends[sample.index], sample.limit)

    def finish(self, samples):
        ended = [sample for sample in samples if self.ended(sample)]
        for sample in ended:
            if len(sample.tokens) > 1:
                self.check_written(sample)
        self.finished += ended
        self.scheduler.finish(ended)

    def check_written(self, sample):
        last = sample.tokens.pop()
        self.check_contents(sample)
        sample.tokens.append(last)


@given(st.data(), REQUESTS, PAGE_SIZES, st.integers(1, 8), st.integers(1, 12), st.integers(1, 3))
def test_every_request_finishes_once_with_its_own_tokens(
    data, requests, page_size, batch_size, chunk, steps
):
    """From the smallest pool that can hold each request alone to more than all need."""
    ends = [data.draw(st.integers(1, r.max_new_tokens)) for r in requests]
    needed = [-(-(len(r.token_ids) + r.max_new_tokens) // page_size) for r in requests]
    pages = data.draw(st.integers(max(needed), sum(needed) + 20))
    game = Game(
        requests,
        ends,
        pages=pages,
        page_size=page_size,
        batch_size=batch_size,
        chunk=chunk,
        steps=steps,
    )
    finished = game.run()
    assert sorted(s.index for s in finished) == list(range(len(requests)))
    for sample in finished:
        assert sample.tokens == [(sample.index, t) for t in range(ends[sample.index])]
    assert len(game.started) == len(requests) + game.scheduler.stats().preempted
    assert game.scheduler.stats().pages_peak <= pages


@given(REQUESTS, st.integers(1, 8))
def test_with_room_for_all_nothing_is_preempted_and_prompts_are_prefilled_once(requests, batch):
    ends = [r.max_new_tokens for r in requests]
    game = Game(requests, ends, pages=1000, page_size=4, batch_size=batch, chunk=10**6, steps=1)
    game.run()
    stats = game.scheduler.stats()
    assert stats.preempted == 0
    assert stats.prefilled == sum(map(len, {r.token_ids for r in requests}))


def test_live_tokens_and_idle_rows_are_counted():
    """Two samples of one prompt of 3 in pages of 2: page (0, 1) shared, page (2, ·) twice."""
    requests = [Request((5, 6, 7), 0, 2), Request((5, 6, 7), 1, 4)]
    game = Game(requests, [2, 4], pages=20, page_size=2, batch_size=2, chunk=99, steps=1)
    game.run()
    stats = game.scheduler.stats()
    assert stats.decode_steps == 3
    assert stats.idle_share == pytest.approx((0 + 0.5 + 0.5) / 3)
    # In use: 1 + 2 pages for 4 + 4 tokens; then 3 pages for 5, and 3 for 6.
    assert stats.slots_per_token == pytest.approx((6 / 8 + 6 / 5 + 6 / 6) / 3)
    assert stats.pages_peak == 3


def test_steps_behind_an_end_are_idle():
    requests = [Request((5, 6, 7), 0, 4), Request((8, 9), 1, 4)]
    game = Game(requests, [2, 4], pages=20, page_size=4, batch_size=2, chunk=99, steps=3)
    game.run()
    assert game.scheduler.stats().decode_steps == 3
    assert game.scheduler.stats().idle_share == pytest.approx((0 + 0.5 + 0.5) / 3)


def test_samples_start_in_whole_batches_not_one_by_one():
    """A prefill costs a pass of its own: 64 rows wait until four are free, but not for the last."""
    requests = [Request((i,), 0, 2 + i % 40) for i in range(200)]
    game = Game(
        requests,
        [r.max_new_tokens for r in requests],
        pages=500,
        page_size=16,
        batch_size=64,
        chunk=10**6,
        steps=1,
    )
    admit, sizes = game.scheduler.admit, []

    def spy():
        admission = admit()
        sizes.append((len(admission.started), len(game.scheduler.waiting)))
        return admission

    game.scheduler.admit = spy
    game.run()
    assert all(size == 0 or size >= 4 for size, left in sizes if left)
