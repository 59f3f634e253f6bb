"""config.json: released models are read; what the decoder cannot do is refused by key (T27)."""

import json

import pytest

from trainer.model import Decoder, ModelConfig, RopeConfig, read_config

QWEN2 = {
    "model_type": "qwen2",
    "vocab_size": 151_936,
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000,
    "sliding_window": 4096,
    "use_sliding_window": False,
    "tie_word_embeddings": False,
    "eos_token_id": 151_643,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


# As published, less the keys nobody reads; the number of parameters is the publisher's.
RELEASED = {
    "DeepSeek-R1-Distill-Qwen-1.5B": (1_777_088_000, QWEN2),
    "SmolLM2-135M": (
        134_515_008,
        {
            "model_type": "llama",
            "vocab_size": 49_152,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "max_position_embeddings": 8192,
            "rope_scaling": None,
            "rope_theta": 100_000,
            "tie_word_embeddings": True,
        },
    ),
    "Llama-3.2-1B": (
        1_235_814_400,
        {
            "model_type": "llama",
            "vocab_size": 128_256,
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "max_position_embeddings": 131_072,
            "rope_scaling": LLAMA3 | {"factor": 32.0, "original_max_position_embeddings": 8192},
            "rope_theta": 500_000.0,
            "tie_word_embeddings": True,
        },
    ),
    "Qwen3-0.6B": (
        596_049_920,
        {
            "model_type": "qwen3",
            "vocab_size": 151_936,
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 40_960,
            "rope_theta": 1_000_000,
            "tie_word_embeddings": True,
        },
    ),
}


@pytest.fixture
def folder(tmp_path):
    write(tmp_path, QWEN2)
    return tmp_path


def write(folder, content):
    """config.json with `content`; keys of value None are left out."""
    kept = {key: value for key, value in content.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))


@pytest.mark.parametrize("name", RELEASED)
def test_released_models(name, tmp_path):
    parameters, content = RELEASED[name]
    write(tmp_path, content)
    config = read_config(tmp_path)
    model = Decoder(config, device="meta")
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert config.head_dim == content.get(
        "head_dim", content["hidden_size"] // config.num_attention_heads
    )
    assert config.rope.theta == content["rope_theta"]
    write(tmp_path, config.to_hf_dict())
    assert read_config(tmp_path) == config


def test_scaled_rope_is_written_for_transformers_4_and_5(folder):
    rope = RopeConfig(5e5, "llama3", 8.0, 1.0, 4.0, 64)
    hf = ModelConfig("llama", 31, 16, 24, 2, 4, 2, 4, rope=rope).to_hf_dict()
    assert hf["rope_theta"] == 5e5
    assert hf["rope_scaling"] == LLAMA3
    assert hf["rope_parameters"] == {**LLAMA3, "rope_theta": 5e5}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"auto_map": {"AutoModelForCausalLM": "evil.Model"}}, "auto_map"),
        ({"model_type": "mamba"}, "model_type 'mamba'"),
        ({"model_type": ["qwen2"]}, "model_type"),
        ({"model_type": None}, "model_type None"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rope_type 'yarn'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "rope_type 'dynamic'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "beta": 1}}, "beta"),
        ({"rope_scaling": {"type": "linear"}}, "factor"),
        ({"rope_scaling": {**LLAMA3, "low_freq_factor": 4.0}}, "low_freq_factor"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "full_attention"),
        ({"rope_scaling": "linear"}, "rope scaling 'linear'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"num_key_value_heads": 5}, "num_key_value_heads 5"),
        ({"head_dim": 5}, "head_dim 5"),
        ({"vocab_size": None}, "vocab_size"),
        ({"vocab_size": "31"}, "vocab_size"),
        ({"hidden_size": -16}, "hidden_size"),
        ({"num_hidden_layers": True}, "num_hidden_layers"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings"),
        ({"eos_token_id": ["</s>"]}, "eos_token_id"),
    ],
)
def test_t27_config_is_refused_by_key(folder, changes, named):
    write(folder, {**QWEN2, **changes})
    with pytest.raises(ValueError, match=named) as refusal:
        read_config(folder)
    assert str(folder / "config.json") in str(refusal.value)


@pytest.mark.parametrize("content", [b"", b"[1]", b"{'model_type': 'qwen2'}", b"\xff\xfe{}"])
def test_config_that_is_no_json_object(folder, content):
    (folder / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"config\.json"):
        read_config(folder)


def test_missing_folder_and_config(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere has no config\.json"):
        read_config(tmp_path / "nowhere")
