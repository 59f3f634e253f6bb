"""The rollout engine that a run's settings ask for."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from trainer.config import Config
from trainer.model import Decoder
from trainer.rollout.engine import RolloutEngine
from trainer.rollout.vllm import VllmEngine


def build_engine(
    config: Config, model: Decoder, folder: Path, tokenizer: PreTrainedTokenizerBase
) -> RolloutEngine | VllmEngine:
    """It draws from `model`, which was loaded from `folder`; ConfigError where vLLM is missing."""
    rollout, evaluate = config.rollout, config.evaluate
    ids = {"eos_id": tokenizer.eos_token_id, "vocab_size": len(tokenizer)}
    if rollout.engine == "vllm":
        answer = round(evaluate.limit_factor * max(evaluate.budgets))
        longest = config.data.max_prompt_tokens + max(rollout.max_response_tokens, answer)
        return VllmEngine(model, folder, batch_size=rollout.batch_size, longest=longest, **ids)
    return RolloutEngine(
        model,
        batch_size=rollout.batch_size,
        page_size=rollout.page_size,
        pages=rollout.pages,
        cuda_graphs=rollout.cuda_graphs,
        **ids,
    )
