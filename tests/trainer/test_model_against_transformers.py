"""The decoder computes what transformers computes, and each reads the other's folders (T20).

Tiny random models of each family; biases and norm weights are perturbed so that none of them can be
forgotten unnoticed. Errors are relative to the largest logit.
"""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config
from transformers.utils import logging

from trainer.model import Decoder, PackedAttention, load_model, read_config, save_model

logging.set_verbosity_error()
logging.disable_progress_bar()

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,  # with 6 frequencies: some kept, some blended, some divided
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 3.0}
CASES = {
    "qwen2-tied": (Qwen2Config, {"tie_word_embeddings": True}),
    "qwen2-untied-theta": (Qwen2Config, {"rope_parameters": {"rope_theta": 1e6}}),
    "qwen2-linear": (Qwen2Config, {"rope_parameters": LINEAR}),
    "qwen2-multi-head": (Qwen2Config, {"num_key_value_heads": 4}),
    "llama": (LlamaConfig, {}),
    "llama-attention-bias": (LlamaConfig, {"attention_bias": True}),
    "llama-mlp-bias": (LlamaConfig, {"mlp_bias": True, "head_dim": 6}),
    "llama-llama3-tied": (LlamaConfig, {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "llama-linear-one-kv-head": (
        LlamaConfig,
        {"rope_parameters": LINEAR, "num_key_value_heads": 1},
    ),
    "qwen3-tied": (Qwen3Config, {"head_dim": 16, "tie_word_embeddings": True}),
    "qwen3-bias-llama3": (
        Qwen3Config,
        {"head_dim": 16, "attention_bias": True, "rope_parameters": LLAMA3},
    ),
}
LENGTHS = (1, 2, 37, 90)


def hf_model(case, seed=0):
    """A random transformers model of the case, every parameter well away from 0 and 1."""
    kind, options = CASES[case]
    sizes = {
        "vocab_size": 97,
        "hidden_size": 48,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "bos_token_id": 1,
        "eos_token_id": [2, 3],
        "pad_token_id": 2,
    }
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(kind(**{**sizes, **options})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.fixture(params=CASES)
def pair(request, tmp_path):
    """(transformers model, our decoder read from its saved folder)."""
    theirs = hf_model(request.param)
    theirs.save_pretrained(tmp_path / "theirs")
    return theirs, load_model(tmp_path / "theirs", dtype=torch.float32)


def pack(sequences):
    lengths = [len(sequence) for sequence in sequences]
    ids = torch.cat(sequences)
    positions = torch.cat([torch.arange(length) for length in lengths])
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    return ids, positions, cu_seqlens, max(lengths)


def packed_logits(model: Decoder, sequences):
    ids, positions, cu_seqlens, longest = pack(sequences)
    attend = PackedAttention(cu_seqlens, longest, model.config.attention_scale)
    return model.logits(model(ids, positions, attend))


def random_sequences(lengths=LENGTHS, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(97, (length,), generator=generator) for length in lengths]


def assert_close(ours, theirs):
    assert ours.shape == theirs.shape
    error = ((ours - theirs).abs().max() / theirs.abs().max()).item()
    assert error <= 1e-5, f"relative error {error:.1e}"


@torch.no_grad()
def test_against_transformers_packed_equals_one_by_one(pair):
    theirs, ours = pair
    sequences = random_sequences()
    expected = torch.cat([theirs(sequence[None]).logits[0] for sequence in sequences])
    assert_close(packed_logits(ours, sequences), expected)


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_against_transformers_packed_equals_padded(pair, side):
    theirs, ours = pair
    sequences = random_sequences()
    ids = torch.full((len(sequences), max(LENGTHS)), 2)  # 2 is pad, EOS and an ordinary token
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        place = slice(-len(sequence), None) if side == "left" else slice(len(sequence))
        ids[row, place] = sequence
        mask[row, place] = 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    padded = theirs(ids, attention_mask=mask, position_ids=positions).logits
    assert_close(packed_logits(ours, sequences), padded[mask.bool()])


def test_against_transformers_gradients(pair):
    theirs, ours = pair
    sequences = random_sequences()
    generator = torch.Generator().manual_seed(2)
    upstream = [torch.randn(length, 97, generator=generator) for length in LENGTHS]
    for sequence, gradient in zip(sequences, upstream, strict=True):
        theirs(sequence[None]).logits[0].backward(gradient)
    packed_logits(ours, sequences).backward(torch.cat(upstream))
    expected = {name: p.grad for name, p in theirs.named_parameters()}
    assert expected.keys() == dict(ours.named_parameters()).keys()
    # k_proj.bias has no gradient without a rotation after it, so errors are judged by the largest.
    scale = max(gradient.abs().max() for gradient in expected.values())
    for name, parameter in ours.named_parameters():
        assert (parameter.grad - expected[name]).abs().max() <= 1e-5 * scale, name


@torch.no_grad()
def test_against_transformers_rotary_is_bit_equal(pair):
    theirs, ours = pair
    ours.to(torch.bfloat16)  # must not touch the angles
    positions = torch.arange(2000)
    cos, sin = ours.model.rotary(positions)
    expected = theirs.model.rotary_emb(torch.zeros(1), positions[None])
    half = ours.config.head_dim // 2
    for actual, wanted in zip((cos, sin), expected, strict=True):
        assert actual.dtype == torch.float32
        assert torch.equal(actual, wanted[0, :, :half])


@pytest.mark.parametrize("max_shard", [5 * 10**9, 20_000])
@torch.no_grad()
def test_t20_transformers_reads_what_we_save(pair, tmp_path, max_shard):
    theirs, ours = pair
    folder = tmp_path / "ours"
    save_model(ours, folder, max_shard=max_shard)
    assert (folder / "model.safetensors").exists() == (max_shard > 20_000)
    loaded, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert loaded.config.eos_token_id == [2, 3]
    sequence = random_sequences([90])[0]
    assert torch.equal(loaded.eval()(sequence[None]).logits, theirs(sequence[None]).logits)
    again = load_model(folder, dtype=torch.float32)
    assert again.config == ours.config
    assert torch.equal(packed_logits(again, [sequence]), packed_logits(ours, [sequence]))


@torch.no_grad()
def test_against_transformers_sharded_folder_of_theirs(tmp_path):
    theirs = hf_model("qwen3-tied")
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    ours = load_model(tmp_path, dtype=torch.float32)
    sequences = random_sequences([50])
    assert_close(packed_logits(ours, sequences), theirs(sequences[0][None]).logits[0])


@torch.no_grad()
def test_against_transformers_bfloat16_folder(tmp_path):
    exact = hf_model("llama-llama3-tied")
    exact.save_pretrained(tmp_path / "fp32")
    save_model(load_model(tmp_path / "fp32", dtype=torch.float32), tmp_path, dtype=torch.bfloat16)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert theirs.dtype == torch.bfloat16
    ours = load_model(tmp_path, dtype=torch.bfloat16)
    for name, parameter in ours.named_parameters():
        assert parameter.dtype == torch.bfloat16
        assert torch.equal(parameter, theirs.state_dict()[name])
    # Rounding differs (our angles stay in float32), so both are judged against float32.
    sequence = random_sequences([50])[0]
    truth = exact(sequence[None]).logits[0]
    their_error = (theirs(sequence[None]).logits[0] - truth).abs().max()
    assert (packed_logits(ours, [sequence]) - truth).abs().max() <= 2 * their_error


@pytest.mark.parametrize("case", ["llama-llama3-tied", "llama-linear-one-kv-head", "qwen2-tied"])
def test_against_transformers_4_rope_keys(case, tmp_path):
    hf_model(case).save_pretrained(tmp_path)
    config = read_config(tmp_path)
    file = tmp_path / "config.json"
    raw = json.loads(file.read_text())
    rope = raw.pop("rope_parameters")
    raw["rope_theta"] = rope.pop("rope_theta")
    # Version 4 wrote null for no scaling, and "type" before it wrote "rope_type".
    kind = rope.pop("rope_type")
    raw["rope_scaling"] = {"type": kind, **rope} if rope else None
    file.write_text(json.dumps(raw))
    assert read_config(tmp_path) == config
