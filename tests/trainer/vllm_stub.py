"""Stands for the package vllm: what the adapter calls, drawn by our engine on its own weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import torch

from trainer.model import Decoder, load_model
from trainer.rollout import Request, RolloutEngine, Sampling


class SamplingParams(SimpleNamespace):
    """Keeps what it is given."""


class _Model:
    """Weights that are nothing until they are loaded."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        with torch.no_grad():
            for parameter in decoder.parameters():
                parameter.zero_()

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        own = dict(self.decoder.named_parameters()) | {"lm_head.weight": self.decoder.head_weight}
        with torch.no_grad():
            for name, value in weights:
                own.pop(name).copy_(value)
        assert not own, f"weights that were not handed over: {own.keys()}"


class LLM:
    """`made` holds the arguments of each; `stale` says that old weights are still cached."""

    made: list[dict[str, Any]] = []  # noqa: RUF012

    def __init__(self, model: str, dtype: str, **settings: Any) -> None:
        self.made.append(settings)
        assert settings["hf_overrides"] == {"tie_word_embeddings": False}
        self._model = _Model(load_model(model, dtype=getattr(torch, dtype)))
        self.stale = False

    def collective_rpc(self, method: str, kwargs: dict[str, Any]) -> None:
        assert method == "reload_weights"
        self.stale = True
        self._model.load_weights(kwargs["weights_iterator"])

    def reset_prefix_cache(self) -> None:
        self.stale = False

    def generate(
        self, prompts: Sequence[dict], params: Sequence[SamplingParams], use_tqdm: bool
    ) -> list[SimpleNamespace]:
        assert not self.stale and not use_tqdm
        first = params[0]
        assert first.ignore_eos and not first.detokenize and first.logprobs == 0
        assert first.top_k == -1 and first.top_p == 1.0
        engine = RolloutEngine(
            self._model.decoder,
            eos_id=first.stop_token_ids[0],
            vocab_size=len(first.allowed_token_ids),
            batch_size=7,
        )
        requests = [
            Request(tuple(prompt["prompt_token_ids"]), p.seed, p.max_tokens)
            for prompt, p in zip(prompts, params, strict=True)
        ]
        found = engine.generate(requests, Sampling(first.temperature))
        return [SimpleNamespace(outputs=[_output(c.token_ids, c.logprobs)]) for c in found]


def _output(ids: list[int], logprobs: list[float]) -> SimpleNamespace:
    entries = [{i: SimpleNamespace(logprob=x)} for i, x in zip(ids, logprobs, strict=True)]
    return SimpleNamespace(token_ids=tuple(ids), logprobs=entries)
