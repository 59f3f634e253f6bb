"""The rollout engine draws from the model's own distribution, and nothing else has a say."""

from __future__ import annotations

import pytest
import torch
from rollout_helpers import EOS, IDS, PROMPTS, WARM, engine_of, mixed_requests, tokens

from tests.helpers import VOCAB_ROWS, tiny_config, tiny_decoder
from trainer import step
from trainer.model import Decoder, PackedAttention
from trainer.packing import pack
from trainer.rollout import Request, Sampling


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


# Weights


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
