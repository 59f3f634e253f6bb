"""One decoder for Qwen2, Llama and Qwen3 in the Hugging Face layout."""

from trainer.model.attention import Attend, DecodeAttention, PackedAttention, PagedCache
from trainer.model.config import ModelConfig, RopeConfig, read_config
from trainer.model.decoder import Decoder
from trainer.model.precision import mixed
from trainer.model.weights import copy_tokenizer, load_model, save_model

__all__ = [
    "Attend",
    "DecodeAttention",
    "Decoder",
    "ModelConfig",
    "PackedAttention",
    "PagedCache",
    "RopeConfig",
    "copy_tokenizer",
    "load_model",
    "mixed",
    "read_config",
    "save_model",
]
