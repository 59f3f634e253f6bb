"""One decoder for Qwen2, Llama and Qwen3 in the Hugging Face layout."""

from trainer.model.attention import Attend, DecodeAttention, PackedAttention, PagedCache
from trainer.model.config import ModelConfig, RopeConfig, read_config
from trainer.model.decoder import Decoder
from trainer.model.embedding import take_rows
from trainer.model.precision import empty_copy, has_bfloat16, working_copy
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
    "empty_copy",
    "has_bfloat16",
    "load_model",
    "read_config",
    "save_model",
    "take_rows",
    "working_copy",
]
