"""The shipped base model: small, whole, and read by transformers as it is by us."""

from __future__ import annotations

import json

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from trainer.data.prompts import encode_prompt
from trainer.embedded.tokenizer import build_tokenizer
from trainer.model import PackedAttention, load_model
from trainer.preflight import find_model, load_tokenizer

BASE = find_model("embedded")


def test_it_is_small_and_has_the_size_its_record_states():
    files = [path for path in BASE.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 6 * 2**20
    parameters = sum(p.numel() for p in load_model(BASE, dtype=torch.float32).parameters())
    record = json.loads((BASE / "pretrain.json").read_text())
    assert 300_000 <= parameters <= 1_500_000 and parameters == record["parameters"]


def test_its_tokenizer_is_what_the_code_builds():
    shipped, think_end = load_tokenizer(BASE)
    text = "3+14+7=? Think for 32 tokens. 3+14=17\n</think>\\boxed{24}<|end|>"
    ids = build_tokenizer().encode(text, add_special_tokens=False)
    assert shipped.encode(text, add_special_tokens=False) == ids
    assert AutoTokenizer.from_pretrained(BASE).encode(text, add_special_tokens=False) == ids
    assert len(think_end) == 1


def test_transformers_computes_the_same_logits():
    tokenizer, _ = load_tokenizer(BASE)
    ids = torch.tensor(encode_prompt(tokenizer, "3+14+7=?", "exact", 32))
    model = load_model(BASE, dtype=torch.float32)
    bounds = torch.tensor([0, len(ids)], dtype=torch.int32)
    attend = PackedAttention(bounds, len(ids), model.config.attention_scale)
    with torch.no_grad():
        ours = model.logits(model(ids, torch.arange(len(ids)), attend))
        theirs = AutoModelForCausalLM.from_pretrained(BASE)(ids[None]).logits[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))
