"""The rollout engine draws from the model's own distribution, and nothing else has a say."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.helpers import VOCAB_ROWS, tiny_config, tiny_decoder
from trainer import step
from trainer.embedded.tokenizer import build_tokenizer
from trainer.model import Decoder, PackedAttention
from trainer.packing import pack
from trainer.rollout import Request, RolloutEngine, Sampling, engine
from trainer.signals import Stopped
from trainer.types import Completion

TOKENIZER = build_tokenizer()
IDS, EOS = len(TOKENIZER), TOKENIZER.eos_token_id
# Lengths 1 to 30; one holds EOS, as chat templates do, and one pads.
PROMPTS = (
    (17,),
    tuple(range(30, 60)),
    (258, 18, EOS, 260, 40, EOS, 259),
    (TOKENIZER.pad_token_id, 258, 80, 81),
)
WARM = Sampling(temperature=0.6)


def engine_of(model: Decoder, batch_size: int = 64, **settings: Any) -> RolloutEngine:
    return RolloutEngine(
        model, eos_id=EOS, vocab_size=IDS, batch_size=batch_size, dtype="float32", **settings
    )


def mixed_requests() -> list[Request]:
    """Five samples of each prompt, with limits from 3 to 20."""
    return [
        Request(prompt, 1000 * i + k, 3 + (7 * i + 5 * k) % 18)
        for k in range(5)
        for i, prompt in enumerate(PROMPTS)
    ]


def tokens(completions: list[Completion]) -> list[list[int]]:
    return [c.token_ids for c in completions]


def full_logits(model: Decoder, ids: list[int]) -> torch.Tensor:
    """Logits after the last of `ids` by one forward pass over all of them, float32 [V]."""
    attend = PackedAttention(
        torch.tensor([0, len(ids)], dtype=torch.int32), len(ids), model.config.attention_scale
    )
    with torch.no_grad():
        hidden = model(torch.tensor(ids), torch.arange(len(ids)), attend)
        return model.logits(hidden[-1:])[0]


# What is drawn


def test_greedy_tokens_are_the_argmax_of_full_forward_passes():
    model = tiny_decoder(end_bias=0.0)
    requests = [Request(prompt, 0, 16) for prompt in PROMPTS]
    completions = engine_of(model).generate(requests, Sampling(temperature=0))
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        ids = list(prompt)
        while len(ids) < len(prompt) + 16 and (len(ids) == len(prompt) or ids[-1] != EOS):
            ids.append(int(full_logits(model, ids)[:IDS].argmax()))
        assert completion.token_ids == ids[len(prompt) :]
    assert len({token for ids in tokens(completions) for token in ids}) > 10  # not one loop


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 64])
def test_a_sample_does_not_depend_on_the_batch_size(batch_size):
    model, requests = tiny_decoder(), mixed_requests()
    together = engine_of(model).generate(requests, WARM)
    split = engine_of(model, batch_size).generate(requests, WARM)
    assert tokens(split) == tokens(together)
    for a, b in zip(split, together, strict=True):
        torch.testing.assert_close(a.logprobs, b.logprobs, rtol=0, atol=1e-5)


def test_a_sample_does_not_depend_on_its_company_or_on_the_order():
    model, requests = tiny_decoder(), mixed_requests()
    together = tokens(engine_of(model).generate(requests, WARM))
    backwards = tokens(engine_of(model).generate(requests[::-1], WARM))
    assert backwards[::-1] == together
    assert tokens(engine_of(model).generate(requests[3::4], WARM)) == together[3::4]
    assert len(set(map(tuple, together))) == len(together)  # other seeds, other samples


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
    model, requests = tiny_decoder(), mixed_requests()
    for settings in ({}, {"page_size": 4, "pages": 13}):
        usual = engine_of(model, 6, **settings).generate(requests, WARM)
        with monkeypatch.context() as patch:
            steps = iter(range(1, 10_000))
            patch.setattr(
                engine,
                "_steps_ahead",
                lambda running, page_size, device, steps=steps: min(
                    1 + next(steps) % 4, min(s.limit - len(s.tokens) for s in running)
                ),
            )
            again = engine_of(model, 6, **settings).generate(requests, WARM)
        assert tokens(again) == tokens(usual)


def test_each_position_is_drawn_anew():
    model = tiny_decoder()
    with torch.no_grad():
        model.lm_head.weight.zero_()  # all tokens alike: only the noise decides
    (completion,) = engine_of(model).generate([Request(PROMPTS[0], 1, 20)], WARM)
    assert len(completion.token_ids) == 20
    assert len(set(completion.token_ids)) > 15


def test_logprobs_are_those_of_the_trainer(tiny_base, tmp_path):
    model, requests = tiny_decoder(), mixed_requests()
    completions = engine_of(model, 6).generate(requests, WARM)
    batch = pack(
        [r.token_ids for r in requests],
        tokens(completions),
        torch.ones(len(requests)),
        range(len(requests)),
    )
    config = tiny_config(tiny_base, tmp_path)
    assert config.rollout.temperature == WARM.temperature
    with torch.no_grad():
        expected, _ = step.logprobs(config, model, batch, IDS)
    found = torch.tensor([lp for c in completions for lp in c.logprobs])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_ids_beyond_the_tokenizer_never_come_out():
    model = tiny_decoder()
    with torch.no_grad():
        model.lm_head.weight[IDS:, 0] = 50.0  # a bias: they would win every draw
    assert IDS < VOCAB_ROWS
    assert int(full_logits(model, [17]).argmax()) >= IDS
    for sampling in (WARM, Sampling(0.0), Sampling(1.0, top_p=0.9), Sampling(1.0, top_k=5)):
        drawn = tokens(engine_of(model).generate(mixed_requests(), sampling))
        assert max(token for ids in drawn for token in ids) < IDS


# Where a sample ends


def test_eos_is_part_of_the_sample_and_ends_it():
    completions = engine_of(tiny_decoder()).generate(mixed_requests(), WARM)
    ended = [c for c in completions if not c.truncated]
    cut = [(c, r) for c, r in zip(completions, mixed_requests(), strict=True) if c.truncated]
    assert ended and cut
    for completion in ended:
        assert completion.token_ids.index(EOS) == len(completion.token_ids) - 1
    for completion, request in cut:
        assert EOS not in completion.token_ids
        assert len(completion.token_ids) == request.max_new_tokens
    assert all(len(c.logprobs) == len(c.token_ids) for c in completions)


def test_eos_as_the_last_token_allowed_is_no_truncation():
    certain = tiny_decoder(end_bias=100.0)
    (completion,) = engine_of(certain).generate([Request(PROMPTS[1], 3, 1)], WARM)
    assert completion.token_ids == [EOS]
    assert not completion.truncated


# What it costs, and what it refuses


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


def test_new_weights_are_used_at_once():
    model = tiny_decoder()
    kept = engine_of(model)
    before = tokens(kept.generate(mixed_requests(), WARM))
    model.load_state_dict(tiny_decoder(seed=1).state_dict())
    after = tokens(kept.generate(mixed_requests(), WARM))
    assert after != before
    assert after == tokens(engine_of(tiny_decoder(seed=1)).generate(mixed_requests(), WARM))


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.self_attn.k_proj.weight"])
def test_damaged_weights_are_reported(name):
    model = tiny_decoder()
    with torch.no_grad():
        model.get_parameter(name).view(-1)[3] = torch.nan
    with pytest.raises(FloatingPointError, match="NaN"):
        engine_of(model).generate(mixed_requests(), WARM)


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
