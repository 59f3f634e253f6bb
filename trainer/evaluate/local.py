"""Draws the samples of an evaluation with the rollout engine, in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from trainer.evaluate.methods import Job, local_request, think_length, token_limit
from trainer.evaluate.settings import EvaluationSettings
from trainer.files import fingerprint
from trainer.model import load_model
from trainer.preflight import find_device, load_tokenizer
from trainer.rollout import RolloutEngine, Sampling

Progress = Callable[[Job], None]


def weights_of(folder: Path) -> str:
    """One sha256 for the model's weight files: what its samples belong to."""
    files = sorted(folder.glob("model*.safetensors"))
    return "-".join(str(fingerprint(file)["sha256"]) for file in files)


def draw(
    settings: EvaluationSettings, folder: Path, wanted: Sequence[Job]
) -> Iterator[dict[str, Any]]:
    """Rows of samples.jsonl as samples end. Raises ConfigError for a device or model there is not.

    Budgets run in one stream, the longest first, so that the batch stays full.
    """
    tokenizer, think_end = load_tokenizer(folder)
    device, dtype = find_device(settings.model.device), settings.model.dtype
    if dtype == "auto":
        dtype = "bfloat16" if device == "cuda" else "float32"
    engine = RolloutEngine(
        load_model(folder, dtype=getattr(torch, dtype), device=device),
        eos_id=tokenizer.eos_token_id,
        vocab_size=len(tokenizer),
        batch_size=settings.batch_size,
        page_size=settings.page_size,
        pages=settings.pages,
    )
    requests = [local_request(settings, job, tokenizer) for job in wanted]
    sampling = Sampling(settings.temperature, settings.top_p)
    for index, completion in engine.stream(requests, sampling):
        ids, job = completion.token_ids, wanted[index]
        text = tokenizer.decode(ids)
        yield sample_row(
            settings, job, text, len(ids), think_length(ids, think_end), completion.truncated
        )


def sample_row(
    settings: EvaluationSettings,
    job: Job,
    text: str,
    tokens: int,
    think_tokens: int,
    truncated: bool,
) -> dict[str, Any]:
    """One sample as samples.jsonl holds it, but for its grade."""
    return {
        "data": job.data,
        "problem_id": job.problem.id,
        "problem": job.problem.question,
        "budget": job.budget,
        "mode": settings.mode,
        "k": job.k,
        "text": text,
        "tokens": tokens,
        "think_tokens": think_tokens,
        "truncated": truncated,
        "limit": token_limit(settings, job.budget),
        "truth": " or ".join(job.problem.answers),
    }
