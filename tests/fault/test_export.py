"""T20: a checkpoint of a run is a model folder that transformers loads, and computes the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast

from tests.helpers import run_here
from trainer.model import PackedAttention


@pytest.fixture
def base(tiny_base, tmp_path) -> Path:
    """A base with generation settings of its own, which belong to the model."""
    folder = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    settings = {"temperature": 0.6, "top_p": 0.95, "do_sample": True}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return folder


def test_t20_transformers_computes_what_was_trained(base, tmp_path):
    job = run_here(base, tmp_path / "run", "train.steps=1", "evaluate.every=0")
    ours, tokenizer, folder = job.trainer.model, job.trainer.tokenizer, job.saved
    theirs, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    start = AutoModelForCausalLM.from_pretrained(base)
    text = "3+14=17\n</think>\\boxed{17}"
    ids = torch.tensor(tokenizer.encode(text, add_special_tokens=False))
    attend = PackedAttention(
        torch.tensor([0, len(ids)], dtype=torch.int32), len(ids), ours.config.attention_scale
    )
    with torch.no_grad():
        logits = ours(ids, torch.arange(len(ids)), attend) @ ours.head_weight.T
        expected = theirs.eval()(ids[None]).logits[0]
        before = start.eval()(ids[None]).logits[0]
    assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (before - expected).abs().max() > 1e-3  # it was trained

    again = PreTrainedTokenizerFast.from_pretrained(folder)
    assert again.encode(text, add_special_tokens=False) == ids.tolist()
    assert again.chat_template == tokenizer.chat_template
    assert again.eos_token_id == theirs.config.eos_token_id == job.trainer.engine.eos_id
    assert GenerationConfig.from_pretrained(folder).top_p == 0.95
