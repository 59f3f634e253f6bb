"""Read and write a decoder's `config.json` in the Hugging Face layout.

Three families share one decoder: Qwen2 (biases on q, k, v), Llama (optional biases) and Qwen3
(q and k normalised per head). Whatever would change the numbers and is not implemented is refused
by name here, before any weight is read.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.json_text import parse_json

ARCHITECTURES = {
    "qwen2": "Qwen2ForCausalLM",
    "llama": "LlamaForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
# Far above any model there is, and below what hangs or overflows before a weight is compared.
MAX_LAYERS = 1_000
MAX_ELEMENTS = 2**40  # of one weight
MAX_HEAD_DIM = 2**16
# Keys each kind of rope scaling may hold; any other key would silently change the frequencies.
_ROPE_KEYS = {
    "default": set(),
    "linear": {"factor"},
    "llama3": {
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    },
}


@dataclass(frozen=True)
class RopeConfig:
    """Rotary embedding: base `theta` and the scaling of its inverse frequencies."""

    theta: float = 10_000.0
    kind: str = "default"  # "default" | "linear" | "llama3"
    factor: float = 1.0  # linear and llama3
    low_freq_factor: float = 1.0  # llama3 only, as the next two
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and options of a decoder; field names are those of Hugging Face's `config.json`."""

    model_type: str  # a key of ARCHITECTURES
    vocab_size: int  # V, rows of the embedding; may exceed the tokenizer's size
    hidden_size: int  # H
    intermediate_size: int  # I
    num_hidden_layers: int  # L
    num_attention_heads: int  # Hq
    num_key_value_heads: int  # Hkv, divides Hq
    head_dim: int  # D, even; Hq * D need not equal H
    max_position_embeddings: int = 32_768
    rms_norm_eps: float = 1e-6
    rope: RopeConfig = RopeConfig()
    tie_word_embeddings: bool = False
    attention_bias: bool = False  # llama and qwen3: on q, k, v and o
    mlp_bias: bool = False  # llama
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None

    @property
    def qkv_bias(self) -> bool:
        """Whether q_proj, k_proj and v_proj have a bias (Qwen2 always has)."""
        return self.model_type == "qwen2" or self.attention_bias

    @property
    def qk_norm(self) -> bool:
        """Whether q and k are RMS-normalised per head before the rotation (Qwen3)."""
        return self.model_type == "qwen3"

    @property
    def attention_scale(self) -> float:
        """Factor on q·k, D^-0.5."""
        return self.head_dim**-0.5

    def to_hf_dict(self) -> dict[str, Any]:
        """Content of `config.json` for `transformers`, without the dtype of the weights.

        The rotary settings are written twice: transformers 5 documents `rope_parameters`, while 4.x
        reads `rope_theta` and `rope_scaling` and would fall back to theta 10,000 without a word.
        """
        rope = {"rope_type": self.rope.kind}
        rope |= {key: getattr(self.rope, key) for key in sorted(_ROPE_KEYS[self.rope.kind])}
        hf: dict[str, Any] = {
            "architectures": [ARCHITECTURES[self.model_type]],
            "model_type": self.model_type,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": self.max_position_embeddings,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope.theta,
            "rope_parameters": {"rope_theta": self.rope.theta, **rope},
            "tie_word_embeddings": self.tie_word_embeddings,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_token_id,
            "pad_token_id": self.pad_token_id,
        }
        if self.rope.kind != "default":
            hf["rope_scaling"] = rope
        if self.model_type in ("llama", "qwen3"):
            hf["attention_bias"] = self.attention_bias
        if self.model_type == "llama":
            hf["mlp_bias"] = self.mlp_bias
        else:
            hf["use_sliding_window"] = False
        return hf


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in `file`; ValueError naming it when it is missing or something else."""
    if not file.is_file():
        raise ValueError(f"{file.parent} has no {file.name}")
    try:
        content = parse_json(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file}: expected a JSON object, found {type(content).__name__}")
    return content


def read_config(folder: str | Path) -> ModelConfig:
    """Parse `folder/config.json`.

    Raises ValueError naming the file and the key: missing file, `auto_map` (remote code), a
    `model_type` other than qwen2, llama or qwen3, an activation other than silu, sliding-window
    attention, an unknown rope scaling, or sizes that do not fit together.
    """
    file = Path(folder) / "config.json"
    raw = read_json(file)
    _refuse_unsupported(raw, file)
    heads = _size(raw, "num_attention_heads", file)
    config = ModelConfig(
        model_type=raw["model_type"],
        vocab_size=_size(raw, "vocab_size", file),
        hidden_size=_size(raw, "hidden_size", file),
        intermediate_size=_size(raw, "intermediate_size", file),
        num_hidden_layers=_size(raw, "num_hidden_layers", file),
        num_attention_heads=heads,
        num_key_value_heads=_size(raw, "num_key_value_heads", file, default=heads),
        head_dim=_head_dim(raw, file),
        max_position_embeddings=_size(raw, "max_position_embeddings", file),
        rms_norm_eps=_positive(raw, "rms_norm_eps", file, default=1e-6),
        rope=_read_rope(raw, file),
        tie_word_embeddings=_flag(raw, "tie_word_embeddings", file),
        attention_bias=raw["model_type"] != "qwen2" and _flag(raw, "attention_bias", file),
        mlp_bias=raw["model_type"] == "llama" and _flag(raw, "mlp_bias", file),
        bos_token_id=_token(raw, "bos_token_id", file),
        eos_token_id=_token(raw, "eos_token_id", file),
        pad_token_id=_token(raw, "pad_token_id", file),
    )
    width = max(config.vocab_size, config.intermediate_size, heads * config.head_dim)
    if config.num_hidden_layers > MAX_LAYERS or width * config.hidden_size > MAX_ELEMENTS:
        raise ValueError(
            f"{file}: num_hidden_layers {config.num_hidden_layers}, weights of "
            f"{width * config.hidden_size} elements; read are {MAX_LAYERS} and {MAX_ELEMENTS}"
        )
    if heads % config.num_key_value_heads:
        raise ValueError(
            f"{file}: num_attention_heads {heads} is no multiple of "
            f"num_key_value_heads {config.num_key_value_heads}"
        )
    return config


def _refuse_unsupported(raw: dict[str, Any], file: Path) -> None:
    if "auto_map" in raw:
        raise ValueError(f"{file}: auto_map asks to run code from the model folder; refused")
    if raw.get("model_type") not in tuple(ARCHITECTURES):  # a tuple: it may not be hashable
        known = ", ".join(ARCHITECTURES)
        raise ValueError(f"{file}: model_type {raw.get('model_type')!r} is none of {known}")
    if raw.get("hidden_act", "silu") != "silu":
        raise ValueError(f"{file}: hidden_act {raw['hidden_act']!r} is not supported, only 'silu'")
    if raw.get("use_sliding_window"):
        raise ValueError(f"{file}: use_sliding_window is not supported, set it to false")
    kinds = raw.get("layer_types")
    layers = _size(raw, "num_hidden_layers", file)
    if kinds is not None and not (
        isinstance(kinds, list)
        and len(kinds) == layers
        and all(k == "full_attention" for k in kinds)
    ):
        raise ValueError(f"{file}: layer_types other than 'full_attention' for each layer")


def _read_rope(raw: dict[str, Any], file: Path) -> RopeConfig:
    """Rotary settings as transformers 5 (`rope_parameters`) or 4 (`rope_scaling`) writes them."""
    scaling = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    if not isinstance(scaling, dict):
        raise ValueError(f"{file}: rope scaling {scaling!r} is not an object")
    rope = {"rope_theta": raw.get("rope_theta", RopeConfig.theta)}
    rope |= {"partial_rotary_factor": raw.get("partial_rotary_factor"), **scaling}
    old_name = rope.pop("type", "default")
    kind = rope.pop("rope_type", old_name)
    if kind not in tuple(_ROPE_KEYS):
        raise ValueError(f"{file}: rope_type {kind!r} is none of {', '.join(_ROPE_KEYS)}")
    if rope.pop("partial_rotary_factor") not in (None, 1, 1.0):
        raise ValueError(f"{file}: partial_rotary_factor other than 1 is not supported")
    if unknown := set(rope) - _ROPE_KEYS[kind] - {"rope_theta"}:
        raise ValueError(f"{file}: rope_type {kind!r} with unknown keys {sorted(unknown)}")
    theta = _positive(rope, "rope_theta", file)
    if kind == "default":
        return RopeConfig(theta)
    factor = _positive(rope, "factor", file)
    if kind == "linear":
        return RopeConfig(theta, kind, factor)
    low = _positive(rope, "low_freq_factor", file)
    high = _positive(rope, "high_freq_factor", file)
    if low >= high:
        raise ValueError(f"{file}: low_freq_factor {low} is not below high_freq_factor {high}")
    trained = _size(rope, "original_max_position_embeddings", file)
    return RopeConfig(theta, kind, factor, low, high, trained)


def _head_dim(raw: dict[str, Any], file: Path) -> int:
    hidden, heads = _size(raw, "hidden_size", file), _size(raw, "num_attention_heads", file)
    # Qwen3 left head_dim out of config.json where it had its default of 128.
    default = 128 if raw["model_type"] == "qwen3" else hidden // heads
    head_dim = _size(raw, "head_dim", file, default=default)
    if head_dim % 2 or head_dim > MAX_HEAD_DIM:
        raise ValueError(
            f"{file}: head_dim {head_dim}: rotary embedding needs pairs, {MAX_HEAD_DIM} at most"
        )
    return head_dim


def _size(raw: dict[str, Any], key: str, file: Path, default: int | None = None) -> int:
    value = default if raw.get(key) is None else raw[key]
    if type(value) is not int or value < 1:  # bool is an int to isinstance
        raise ValueError(f"{file}: {key} must be a positive integer, found {value!r}")
    if value > MAX_ELEMENTS:
        raise ValueError(f"{file}: {key} is more than {MAX_ELEMENTS}, the most elements of any")
    return value


def _positive(raw: dict[str, Any], key: str, file: Path, default: float | None = None) -> float:
    value = default if raw.get(key) is None else raw[key]
    if type(value) not in (int, float) or not 0 < value <= sys.float_info.max:
        raise ValueError(f"{file}: {key} must be a positive number, found {value!r}")
    return float(value)


def _flag(raw: dict[str, Any], key: str, file: Path) -> bool:
    value = raw.get(key, False)
    if not isinstance(value, bool):
        raise ValueError(f"{file}: {key} must be true or false, found {value!r}")
    return value


def _token(raw: dict[str, Any], key: str, file: Path) -> int | tuple[int, ...] | None:
    value = raw.get(key)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if any(type(token) is not int for token in ids):
        raise ValueError(f"{file}: {key} must hold token ids, found {value!r}")
    return tuple(value) if isinstance(value, list) else value
