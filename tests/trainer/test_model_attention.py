"""Packing and caching change where a token is computed, never what it becomes (T13, model side)."""

import pytest
import torch

from trainer.model import DecodeAttention, Decoder, ModelConfig, PackedAttention, PagedCache

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 64,
}
PAGE = 8
LENGTHS = (1, 2, 64, 17)  # the shortest ones, the longest the model has positions for


@pytest.fixture(params=["qwen2", "llama", "qwen3"])
def model(request):
    model = Decoder(ModelConfig(request.param, **SIZES))
    model.init_weights(seed=3)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def sequences(lengths=LENGTHS):
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(61, (length,), generator=generator) for length in lengths]


def packed_hidden(model, batch, *cache):
    lengths = [len(sequence) for sequence in batch]
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    positions = torch.cat([torch.arange(length) for length in lengths])
    attend = PackedAttention(cu_seqlens, max(lengths), model.config.attention_scale, *cache)
    return model(torch.cat(batch), positions, attend)


def assert_close(actual, expected):
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()


@torch.no_grad()
def test_t13_packed_equals_one_by_one(model):
    batch = sequences()
    alone = torch.cat([packed_hidden(model, [sequence]) for sequence in batch])
    assert_close(packed_hidden(model, batch), alone)


@torch.no_grad()
@pytest.mark.parametrize("changed", range(len(LENGTHS)))
def test_t13_other_sequences_stay_bit_equal(model, changed):
    batch = sequences()
    before = packed_hidden(model, batch).split(LENGTHS)
    batch[changed] = (batch[changed] + 1) % 61
    after = packed_hidden(model, batch).split(LENGTHS)
    same = [torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert same == [index != changed for index in range(len(LENGTHS))]


@torch.no_grad()
def test_attention_is_causal(model):
    batch = sequences([30])
    before = packed_hidden(model, batch)
    batch[0][20] = (batch[0][20] + 1) % 61
    after = packed_hidden(model, batch)
    assert torch.equal(before[:20], after[:20])
    assert not torch.isclose(before[20:], after[20:]).all(dim=1).any()


def test_gradient_does_not_cross_sequences(model):
    # Disjoint token ids, so that each embedding row belongs to one sequence.
    batch = [torch.arange(10), torch.arange(10, 30)]
    packed_hidden(model, batch)[10:].square().sum().backward()
    gradient = model.model.embed_tokens.weight.grad
    assert not gradient[:10].any()
    assert gradient[10:30].any(dim=1).all()


@torch.no_grad()
def test_prefill_and_cached_decode_equal_the_full_forward(model):
    config, prompts, steps, pages = model.config, (4, 1, 11), 9, 4
    batch = sequences([prompt + steps for prompt in prompts])
    cache = PagedCache.empty(config, 3 * pages, PAGE, torch.float32, torch.device("cpu"))
    # Slots not yet written must not matter: an earlier, larger request may have used them.
    for part in (cache.k, cache.v):
        part.fill_(torch.nan)
    block_table = torch.randperm(3 * pages).int().view(3, pages)
    slots = [
        block_table[row, t // PAGE] * PAGE + t % PAGE
        for row, p in enumerate(prompts)
        for t in range(p)
    ]
    starts = [sequence[:prompt] for sequence, prompt in zip(batch, prompts, strict=True)]
    hidden = packed_hidden(model, starts, cache, torch.tensor(slots).long())
    rows = [[part] for part in hidden.split(prompts)]
    lengths = torch.tensor(prompts)
    for _ in range(steps):
        ids = torch.stack([s[n] for s, n in zip(batch, lengths.tolist(), strict=True)])
        attend = DecodeAttention(cache, block_table, lengths, config.attention_scale)
        hidden = model(ids, lengths, attend)
        for row, new in zip(rows, hidden.split(1), strict=True):
            row.append(new)
        lengths += 1
    assert_close(torch.cat([torch.cat(row) for row in rows]), packed_hidden(model, batch))


@torch.no_grad()
def test_cached_decode_does_not_depend_on_its_batch(model):
    config = model.config
    shape = (config.num_hidden_layers, 3, 16, config.num_key_value_heads, config.head_dim)
    generator = torch.Generator().manual_seed(6)
    cache_k, cache_v = torch.randn((2, *shape), generator=generator)
    lengths, ids = torch.tensor([3, 15, 8]), torch.tensor([7, 8, 9])

    def decode(rows):
        cache = PagedCache(cache_k.clone(), cache_v.clone())
        block_table = torch.tensor(rows, dtype=torch.int32)[:, None]
        attend = DecodeAttention(cache, block_table, lengths[rows], config.attention_scale)
        return model(ids[rows], lengths[rows], attend)

    together = decode([0, 1, 2])
    assert_close(torch.cat([decode([row]) for row in range(3)]), together)


def test_a_table_without_room_for_the_new_token_is_an_error():
    cache = PagedCache(*torch.zeros(2, 2, 1, 4, 2, 12))
    with pytest.raises(RuntimeError, match="out of bounds"):
        DecodeAttention(cache, torch.zeros(1, 1, dtype=torch.int32), torch.tensor([4]), 1.0)


def test_initial_weights_depend_on_the_seed_only():
    def draw(seed, **options):
        model = Decoder(ModelConfig("qwen2", **SIZES), **options)
        model.init_weights(seed)
        return model.state_dict()

    first, again, other = draw(1), draw(1), draw(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])
    half = draw(1, dtype=torch.bfloat16)
    assert all(torch.equal(first[name].bfloat16(), half[name]) for name in first)
    assert first["model.embed_tokens.weight"].std().item() == pytest.approx(0.02, rel=0.1)
    assert not first["model.layers.0.self_attn.q_proj.bias"].any()
    assert (first["model.norm.weight"] == 1).all()


def test_meta_decoder_holds_no_storage():
    model = Decoder(ModelConfig("qwen3", **SIZES), device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("meta", torch.bfloat16)}
