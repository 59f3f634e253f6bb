"""Continuous batching: what it costs, what comes out when, and that it changes no sample."""

from __future__ import annotations

import pytest
import torch
from rollout_helpers import EOS, PROMPTS, WARM, engine_of, mixed_requests, tokens

from tests.helpers import tiny_decoder
from trainer.rollout import Request, engine, fused, graphs
from trainer.signals import Stopped

# What must not matter


@pytest.mark.parametrize("page_size", [1, 3, 16, 256])
def test_a_sample_does_not_depend_on_the_page_size(page_size):
    model, requests = tiny_decoder(), mixed_requests()
    usual = tokens(engine_of(model).generate(requests, WARM))
    assert tokens(engine_of(model, 6, page_size=page_size).generate(requests, WARM)) == usual


def test_a_sample_does_not_depend_on_preemption():
    """The largest request needs 17 pages of 3 tokens; the pool has just these."""
    model, requests = tiny_decoder(), mixed_requests()
    usual = tokens(engine_of(model).generate(requests, WARM))
    small = engine_of(model, page_size=3, pages=17)
    assert tokens(small.generate(requests, WARM)) == usual
    assert small.stats.preempted > 3
    assert small.stats.pages_peak == 17


def test_a_thousand_requests_through_a_pool_for_eight():
    model = tiny_decoder()
    requests = [
        Request(tuple(range(20 + i % 7, 25 + i % 7 + i % 3)), seed=i, max_new_tokens=1 + i % 9)
        for i in range(1000)
    ]
    small = engine_of(model, page_size=4, pages=8 * 4)
    large = engine_of(model, 256)
    assert tokens(small.generate(requests, WARM)) == tokens(large.generate(requests, WARM))
    assert small.stats.preempted > 0 == large.stats.preempted


@pytest.mark.parametrize("chunk", [1, 10, 40])
def test_a_sample_does_not_depend_on_prefill_chunks(chunk, monkeypatch):
    """From a prompt a pass to all in one; the longest has 30 tokens."""
    model, requests = tiny_decoder(), mixed_requests()
    usual = tokens(engine_of(model).generate(requests, WARM))
    monkeypatch.setattr(engine, "PREFILL_TOKENS", chunk)
    assert tokens(engine_of(model, 6).generate(requests, WARM)) == usual


def test_looking_at_tokens_every_few_steps_changes_nothing(monkeypatch):
    """As on CUDA, where rows decode on behind their EOS until the host has looked."""
    monkeypatch.setattr(fused, "can_fuse", lambda model: False)  # there a row stops at its end
    model, requests = tiny_decoder(), mixed_requests()
    for settings in ({}, {"page_size": 4, "pages": 13}):
        usual = engine_of(model, 6, **settings).generate(requests, WARM)
        with monkeypatch.context() as patch:
            steps = iter(range(1, 10_000))
            patch.setattr(
                engine,
                "_steps_ahead",
                lambda running, page_size, wanted, steps=steps: min(
                    1 + next(steps) % 4, min(s.limit - len(s.tokens) for s in running)
                ),
            )
            again = engine_of(model, 6, **settings).generate(requests, WARM)
        assert tokens(again) == tokens(usual)


def test_graphs_change_nothing(monkeypatch):
    """A stand-in that, like a CUDA graph, runs a fixed number of rows into fixed outputs."""
    sizes = []

    def capture(step, state):
        before = state.clone()
        outputs = step()
        state.copy_(before)
        sizes.append(len(outputs[0]))

        def replay():
            for fixed, new in zip(outputs, step(), strict=True):
                fixed.copy_(new)
            return outputs

        return replay

    monkeypatch.setattr(graphs, "capture", capture)
    model, requests = tiny_decoder(), mixed_requests()
    for settings in ({"batch_size": 6}, {"batch_size": 64}, {"page_size": 4, "pages": 13}):
        usual = tokens(engine_of(model, **settings).generate(requests, WARM))
        drawn = engine_of(model, cuda_graphs=True, **settings).generate(requests, WARM)
        assert tokens(drawn) == usual
    assert sizes[:4] == [6, 20, 16, 8]  # never more than the batch has


def test_sizes_of_graphs():
    found = [graphs.padded_rows(rows, 200) for rows in (1, 8, 9, 17, 33, 64, 65, 193, 200)]
    assert found == [8, 8, 16, 32, 64, 64, 96, 200, 200]


# What it costs


def test_a_prompt_shared_by_a_group_is_prefilled_once():
    model, seen = tiny_decoder(), []
    model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    requests = [Request(prompt, k, 1) for prompt in PROMPTS[:2] for k in range(4)]
    engine_of(model).generate(requests, WARM)
    assert seen == [len(PROMPTS[0]) + len(PROMPTS[1])]


def test_ended_rows_cost_nothing():
    model, seen = tiny_decoder(), []
    model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    requests = [Request(PROMPTS[0], k, 20 if k == 4 else 1) for k in range(10)]
    completions = engine_of(model).generate(requests, WARM)
    longest = max(len(c.token_ids) for c in completions)
    assert longest > 2
    assert seen == [1] * longest  # nine of ten rows ended with their first token


def test_places_of_ended_samples_are_taken_at_once():
    model, seen = tiny_decoder(), []
    with torch.no_grad():
        model.lm_head.weight[EOS, 0] = -100.0  # no sample ends before its limit
    model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    requests = [Request(PROMPTS[1], k, 2 if k % 2 else 7) for k in range(12)]
    batch = engine_of(model, 4)
    batch.generate(requests, WARM)
    assert seen[0] == 30
    assert batch.stats.decode_steps == len(seen) - 1
    assert batch.stats.decode_steps <= -(-sum(r.max_new_tokens - 1 for r in requests) // 4) + 2
    assert batch.stats.prefilled == 30


def test_long_samples_start_first():
    model, order = tiny_decoder(end_bias=-100.0), []
    requests = [
        Request((17, 18 + k // 2), k, 4, expected=expected)
        for k, expected in enumerate([3, 3, 90, 90, 0, 0, 40, 40])
    ]
    for index, _ in engine_of(model, 2).stream(requests, WARM):
        order.append(index)
    assert order == [2, 3, 6, 7, 4, 5, 0, 1]  # 0 stands for the limit, 4


def test_pages_follow_the_live_tokens():
    """One page of 4 tokens a row is half empty on average; a shared prompt counts once."""
    model = tiny_decoder(end_bias=-100.0)
    alone = engine_of(model, page_size=4)
    alone.generate([Request((*PROMPTS[1], k), k, 40) for k in range(8)], WARM)
    assert 1 < alone.stats.slots_per_token < 1.1
    shared = engine_of(model, page_size=4)
    shared.generate([Request(PROMPTS[1], k, 10) for k in range(8)], WARM)
    assert shared.stats.slots_per_token < 0.5
    assert shared.stats.pages_peak <= 8 + 8 * 3


# What the caller sees


def test_progress_counts_to_the_end_and_can_stop_the_work():
    seen = []
    engine_of(tiny_decoder(), 6).generate(mixed_requests(), WARM, lambda *pair: seen.append(pair))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (20, 20)
    assert {total for _, total in seen} == {20}

    def stop(done: int, total: int) -> None:
        if done >= 5:
            raise Stopped

    with pytest.raises(Stopped):
        engine_of(tiny_decoder(), 6).generate(mixed_requests(), WARM, stop)


def test_samples_stream_out_as_they_end():
    """Before the others, with their tokens seen one by one, and the caller's state untouched."""
    model, seen = tiny_decoder(), {}
    requests = mixed_requests()

    def on_token(index: int, token: int) -> None:
        seen.setdefault(index, []).append(token)

    found = {}
    for index, completion in engine_of(model, 6).stream(requests, WARM, on_token=on_token):
        assert torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
        assert seen[index] == completion.token_ids
        assert index not in found
        found[index] = completion
        if len(found) == 1:
            assert len(seen) < len(requests)
    assert [found[i] for i in range(20)] == engine_of(model, 6).generate(requests, WARM)


def test_nothing_asked_is_nothing_done():
    assert engine_of(tiny_decoder()).generate([], WARM) == []


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request((), 0, 3), "request 1 has 0 prompt tokens"),
        (Request((17,), 0, 0), "max_new_tokens=0"),
        (Request((17,) * 20, 0, 13), "33 tokens, 9 pages of 4, but rollout.pages=8"),
    ],
)
def test_a_request_that_cannot_run_is_refused_before_any_work(request_, message):
    model = tiny_decoder()
    model.register_forward_pre_hook(lambda module, args: pytest.fail("work was done"))
    with pytest.raises(ValueError, match=message):
        engine_of(model, page_size=4, pages=8).generate([Request((17,), 0, 31), request_], WARM)
