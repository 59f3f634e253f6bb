"""Prefills and decode steps on packed weights against the model itself, op by op."""

from __future__ import annotations

import pytest
import torch
from rollout_helpers import EOS, IDS, WARM, engine_of, mixed_requests, tokens

import kernels
from kernels import dispatch
from kernels.ops import packed_decoder
from tests.helpers import tiny_decoder
from trainer.model import Decoder, ModelConfig, PackedAttention
from trainer.rollout import Forced, Forcing, Request, Sampling, fused
from trainer.rollout.prompts import pack_prompts

CPU = torch.device("cpu")
compiled = pytest.mark.skipif(
    dispatch.packed_decoder(CPU, torch.float32) is None, reason="the compiled library is not built"
)
# Every family; sizes that fill no panel of columns (64 or 48), a head of 320 rows that does; a
# group of 3 and of 1; sums longer than one chain (256); a tied head.
MODELS = {
    "llama": ModelConfig("llama", 320, 36, 70, 2, 3, 1, 12, mlp_bias=True, attention_bias=True),
    "qwen2": ModelConfig("qwen2", 320, 64, 300, 3, 4, 2, 16, tie_word_embeddings=True),
    "qwen3": ModelConfig("qwen3", 330, 48, 96, 2, 2, 2, 32),
}


def decoder(name: str, dtype: torch.dtype = torch.float32) -> Decoder:
    model = Decoder(MODELS[name])
    model.init_weights(0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms too: zeros and ones hide much
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.to(dtype)


def log_probs(model: Decoder, requests: list[Request], found: list) -> list[torch.Tensor]:
    """Of the tokens found, by the model's forward pass as in training, in its own dtype."""
    out = []
    for request, completion in zip(requests, found, strict=True):
        ids = torch.tensor([*request.token_ids, *completion.token_ids])
        attend = PackedAttention(
            torch.tensor([0, len(ids)], dtype=torch.int32), len(ids), model.config.attention_scale
        )
        with torch.no_grad():
            hidden = model(ids, torch.arange(len(ids)), attend)[len(request.token_ids) - 1 : -1]
            z = model.logits(hidden).float()[:, :IDS] / WARM.temperature
        drawn = torch.tensor(completion.token_ids)
        out.append(z.log_softmax(-1).gather(1, drawn[:, None]).squeeze(1))
    return out


@compiled
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_float32_tokens_are_those_of_the_ops(name, threads, monkeypatch):
    model, requests = decoder(name), mixed_requests()
    assert fused.can_fuse(model)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = engine_of(model, 7, page_size=4).generate(requests, WARM)
    finally:
        torch.set_num_threads(before)
    for ours, want in zip(found, log_probs(model, requests, found), strict=True):
        torch.testing.assert_close(torch.tensor(ours.logprobs), want, rtol=0, atol=1e-5)
    monkeypatch.setattr(fused, "can_fuse", lambda model: False)
    assert tokens(engine_of(model, 7, page_size=4).generate(requests, WARM)) == tokens(found)


@compiled
@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_errs_no_more_than_the_ops(name, monkeypatch):
    """Both against the same weights in float32: the mean error may not be larger than theirs."""
    model, requests = decoder(name, torch.bfloat16), mixed_requests()
    if dispatch.packed_decoder(CPU, torch.bfloat16) is None:
        pytest.skip("this processor has no AVX-512 BF16")
    assert fused.can_fuse(model)
    wide = decoder(name, torch.bfloat16).float()
    errors = []
    for can_fuse in (True, False):
        monkeypatch.setattr(fused, "can_fuse", lambda model, answer=can_fuse: answer)
        found = engine_of(model, 7).generate(requests, WARM)
        truth = log_probs(wide, requests, found)
        gaps = [(torch.tensor(c.logprobs) - t).abs() for c, t in zip(found, truth, strict=True)]
        errors.append(torch.cat(gaps).mean())
    assert errors[0] < 1.5 * errors[1] < 0.1


@compiled
@pytest.mark.parametrize("name", MODELS)
def test_a_row_depends_on_nothing_else(name):
    """Bits: whatever the batch, the pages, preemption and the prompts that begin alike."""
    model = decoder(name)
    head = tuple(range(40, 57))
    requests = [Request((*head, 60 + k % 5, *range(k % 4)), k, 3 + k % 17) for k in range(24)]
    usual = engine_of(model).generate(requests, WARM)
    for settings in ({"batch_size": 1}, {"batch_size": 5, "page_size": 3}, {"pages": 20}):
        engine = engine_of(model, **{"page_size": 4, **settings})
        assert engine.generate(requests, WARM) == usual
        assert (engine.stats.preempted > 0) == ("pages" in settings)


@compiled
@pytest.mark.parametrize("settings", [{}, {"batch_size": 5, "page_size": 3}, {"pages": 20}])
def test_steps_of_a_call_change_nothing(settings, monkeypatch):
    """Bits, with ends and preemption in the middle of a call; EOS itself is never an input."""
    model = decoder("llama")
    with torch.no_grad():
        model.lm_head.weight[EOS] *= 3  # some samples end so, at any step
        model.model.embed_tokens.weight[EOS] = torch.nan
    requests = [Request((17 + k % 5, *range(40, 40 + k % 7)), k, 30) for k in range(24)]
    found = []
    for steps in (1, 3, 8):
        monkeypatch.setattr(packed_decoder, "STEPS_AHEAD", steps)
        engine = engine_of(model, **{"page_size": 8, **settings})
        found.append(engine.generate(requests, WARM))
        assert (engine.stats.preempted > 0) == ("pages" in settings)
    assert found[0] == found[1] == found[2]
    ends = {len(c.token_ids) for c in found[0] if not c.truncated}
    assert len(ends) > 3 and any(c.truncated for c in found[0])


@compiled
def test_nan_is_told_wherever_it_comes_in_a_call():
    model = decoder("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight[:IDS] = torch.nan
        model.model.embed_tokens.weight[17] = 1.0  # the prompt's: logits are NaN one step later
    with pytest.raises(FloatingPointError, match="NaN"):
        engine_of(model).generate([Request((17,), k, 30) for k in range(9)], WARM)


@compiled
def test_large_weights_are_shared_out_by_columns():
    """More than the caches hold: the threads then meet between the parts of a layer."""
    config = ModelConfig("llama", 320, 256, 4400, 2, 4, 2, 16)
    model = Decoder(config)
    model.init_weights(0)
    requests, found = mixed_requests(), []
    before = torch.get_num_threads()
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        found.append(engine_of(model, 6).generate(requests, WARM))
    torch.set_num_threads(before)
    assert found[0] == found[1] == found[2]
    for ours, want in zip(found[0], log_probs(model, requests, found[0]), strict=True):
        torch.testing.assert_close(torch.tensor(ours.logprobs), want, rtol=0, atol=1e-5)


@compiled
@pytest.mark.parametrize(
    "sampling", [Sampling(0.0), Sampling(0.9, top_k=7), Sampling(0.9, top_p=0.8)]
)
def test_sampling_options_and_forced_text(sampling, monkeypatch):
    model = decoder("qwen2")
    then = Forcing(4, (90,), lambda ids: Forced((91, 92), 5) if len(ids) < 12 else None)
    requests = [Request((20 + k, 30), k, 20, forcing=then if k % 2 else None) for k in range(9)]
    found = engine_of(model).generate(requests, sampling)
    monkeypatch.setattr(fused, "can_fuse", lambda model: False)
    assert tokens(engine_of(model).generate(requests, sampling)) == tokens(found)


def test_models_that_must_be_called_are():
    hooked, wrapped, wide = tiny_decoder(), tiny_decoder(), tiny_decoder().double()
    hooked.model.layers[1].register_forward_hook(lambda *_: None)
    wrapped.model.layers[1].mlp.up_proj.__class__ = type("Wrapped", (torch.nn.Linear,), {})
    assert not any(map(fused.can_fuse, (hooked, wrapped, wide)))
    for choice in ("torch", "rope=torch", "sample_tokens=torch"):
        with kernels.override(choice):
            assert not fused.can_fuse(tiny_decoder())


def test_what_prompts_share_is_packed_once():
    """Worked by hand: pages of 2, a common beginning of 2 of prompts with 3, 4 and 3 tokens."""
    prompts, tables = [(5, 6, 7), (5, 6, 8, 9), (5, 6, 7)], [[4, 0], [1, 2], [3, 5]]
    packed = pack_prompts(prompts, tables, 2, share=True)
    assert packed.ids.tolist() == [5, 6, 7, 8, 9, 7]
    assert packed.positions.tolist() == [0, 1, 2, 2, 3, 2]
    assert packed.cu_seqlens.tolist() == [0, 2, 3, 5, 6]
    assert packed.prefix.tolist() == [-1, 0, 0, 0]
    assert packed.sources.tolist() == [0, 1, 2, 0, 1, 3, 4, 0, 1, 5]
    assert packed.targets.tolist() == [8, 9, 0, 2, 3, 4, 5, 6, 7, 10]
    assert packed.last.tolist() == [2, 4, 5]
    # One that is all of another keeps its last token; a prompt alone shares nothing.
    assert pack_prompts([(5, 6), (5, 6)], tables[:2], 2, share=True).ids.tolist() == [5, 6, 6]
    alone = pack_prompts(prompts[:1], tables[:1], 2, share=True)
    assert alone.prefix is None and alone.sources.tolist() == [0, 1, 2]
    apart = pack_prompts(prompts, tables, 2, share=False)
    assert apart.prefix is None and apart.ids.tolist() == [5, 6, 7, 5, 6, 8, 9, 5, 6, 7]
    assert apart.last.tolist() == [2, 6, 9]
