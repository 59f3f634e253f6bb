"""Forced text: the engine goes on behind it as if it had drawn it, without another prefill."""

from __future__ import annotations

import pytest
from rollout_helpers import EOS, WARM, engine_of

from tests.helpers import tiny_decoder
from trainer.rollout import Forced, Forcing, Request, Sampling

PROMPT, ANSWER, WAIT = tuple(range(30, 41)), (200, 201, 202), (210, 211)


def never_ending():
    return tiny_decoder(end_bias=-100.0)


def one(model, request, sampling=WARM, **settings):
    (completion,) = engine_of(model, **settings).generate([request], sampling)
    return completion


def test_the_answer_is_forced_at_the_budget():
    """S1: stop at n tokens, append the answer's beginning, draw the rest."""
    model, passes = never_ending(), []
    free = one(model, Request(PROMPT, 5, 12)).token_ids
    model.register_forward_pre_hook(lambda module, args: passes.append(len(args[0])))
    forcing = Forcing(7, (), lambda ids: Forced(ANSWER, 4) if len(ids) == 7 else None)
    found = one(model, Request(PROMPT, 5, 100, forcing=forcing))
    ids = found.token_ids
    assert ids[:7] == free[:7] and ids[7:10] == list(ANSWER) and len(ids) == 14
    assert found.truncated
    assert passes == [len(PROMPT), *[1] * 13]  # nothing twice
    # What follows is drawn as behind any other text: from a prompt that ends with it.
    assert found.logprobs[7:10] == [0.0, 0.0, 0.0]
    greedy = Sampling(0.0)
    forced = one(model, Request(PROMPT, 5, 100, forcing=forcing), greedy).token_ids
    rest = one(model, Request((*PROMPT, *forced[:10]), 9, 4), greedy).token_ids
    assert forced[10:] == rest


def test_an_early_end_is_replaced_by_wait():
    """S1: below the budget EOS is taken back, "Wait" stands in its place, thinking goes on."""
    certain = tiny_decoder(end_bias=100.0)  # draws nothing but EOS

    def then(ids):
        assert ids[-1] == EOS
        return Forced(WAIT, 50, replace=True) if len(ids) < 6 else None

    found = one(certain, Request(PROMPT, 5, 100, forcing=Forcing(50, (), then)))
    assert found.token_ids == [*WAIT, *WAIT, *WAIT, EOS]
    assert not found.truncated
    assert [lp == 0.0 for lp in found.logprobs[:6]] == [True] * 6


def test_stop_ids_end_a_stage():
    model = never_ending()
    free = one(model, Request(PROMPT, 5, 12)).token_ids
    stop = free[4]
    assert free.index(stop) == 4
    kept = Forcing(99, (stop,), lambda ids: Forced(ANSWER, 0) if ids[-1] == stop else None)
    replaced = Forcing(99, (stop,), lambda ids: Forced(ANSWER, 0, replace=True))
    ended = Forcing(99, (stop,), lambda ids: None)
    expected = [[*free[:5], *ANSWER], [*free[:4], *ANSWER], free[:5]]
    requests = [Request(PROMPT, 5, 50, forcing=forcing) for forcing in (kept, replaced, ended)]
    completions = engine_of(model).generate([*requests, Request(PROMPT, 5, 12)], WARM)
    assert [c.token_ids for c in completions] == [*expected, free]


@pytest.mark.parametrize("limit", [7, 8, 9, 10, 11])
def test_the_requests_own_limit_holds(limit):
    """Before, within and right behind the forced text."""
    model = never_ending()
    forcing = Forcing(7, (), lambda ids: Forced(ANSWER, 90))
    whole = one(model, Request(PROMPT, 5, 20, forcing=forcing)).token_ids
    found = one(model, Request(PROMPT, 5, limit, forcing=forcing))
    assert found.token_ids == whole[:limit]


def test_forcing_does_not_depend_on_company_pages_or_preemption():
    model = tiny_decoder()
    requests = [
        Request(
            PROMPT[: 1 + k % 5],
            k,
            30,
            forcing=Forcing(
                2 + k % 4,
                (40, 41),
                lambda ids: Forced(WAIT, 5, replace=ids[-1] == EOS) if len(ids) < 15 else None,
            )
            if k % 3
            else None,
        )
        for k in range(20)
    ]
    usual = engine_of(model).generate(requests, WARM)
    alone = [engine_of(model).generate([r], WARM)[0].token_ids for r in requests]
    assert [c.token_ids for c in usual] == alone
    small = engine_of(model, page_size=3, pages=14)
    assert [c.token_ids for c in small.generate(requests, WARM)] == alone
    assert small.stats.preempted > 0


def test_tokens_seen_are_those_that_stay():
    seen = []
    forcing = Forcing(9, (), lambda ids: Forced(WAIT, 9, replace=True) if len(ids) < 3 else None)
    engine = engine_of(tiny_decoder(end_bias=100.0))
    stream = engine.stream(
        [Request(PROMPT, 5, 100, forcing=forcing)], WARM, on_token=lambda i, t: seen.append(t)
    )
    ((_, found),) = stream
    assert seen == found.token_ids == [*WAIT, EOS]


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="forced text is empty"):
        Forced((), 3)
    with pytest.raises(ValueError, match="cannot draw -1"):
        Forced((1,), -1)
    with pytest.raises(ValueError, match="at least 1 token, got 0"):
        Forcing(0, (), lambda ids: None)
