"""The rollout engine draws from the model's own distribution, and nothing else has a say."""

from __future__ import annotations

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


def engine_of(model: Decoder, batch_size: int = 64) -> RolloutEngine:
    return RolloutEngine(model, eos_id=EOS, vocab_size=IDS, batch_size=batch_size, dtype="float32")


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


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
def test_a_sample_does_not_depend_on_when_ended_rows_are_squeezed_out(threshold, monkeypatch):
    model, requests = tiny_decoder(), mixed_requests()
    usual = tokens(engine_of(model).generate(requests, WARM))
    monkeypatch.setattr(engine, "SQUEEZE_BELOW", threshold)
    assert tokens(engine_of(model).generate(requests, WARM)) == usual


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


def test_ended_rows_are_squeezed_out():
    model, seen = tiny_decoder(), []
    model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    requests = [Request(PROMPTS[0], k, 20 if k == 4 else 1) for k in range(10)]
    completions = engine_of(model).generate(requests, WARM)
    longest = max(len(c.token_ids) for c in completions)
    assert longest > 2
    assert seen == [1] * longest  # nine of ten rows ended with their first token


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
