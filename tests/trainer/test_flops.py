"""FLOPs from the configuration against what torch counts in transformers' own model."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from trainer import flops
from trainer.flops import BACKWARD, Work, forward_flops, packed_work, peak_flops, sequence_work
from trainer.model import read_config


@pytest.mark.parametrize("family", [LlamaConfig, Qwen2Config])
def test_as_torch_counts_transformers(family, tmp_path):
    """Its attention multiplies the masked half too, so here all pairs are counted."""
    config = family(
        vocab_size=320, hidden_size=96, intermediate_size=160, num_hidden_layers=3,
        num_attention_heads=6, num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    config.architectures = [family.__name__.replace("Config", "ForCausalLM")]
    config.save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    batch, length = 2, 64
    with FlopCounterMode(display=False) as forward:
        logits = model(torch.ones(batch, length, dtype=torch.int64)).logits
    with FlopCounterMode(display=False) as backward:
        logits.sum().backward()
    work = Work(batch * length, batch * length**2, batch * length)
    ours = forward_flops(read_config(tmp_path), work)
    assert ours == pytest.approx(forward.get_total_flops(), rel=0.02)
    assert BACKWARD * ours == pytest.approx(backward.get_total_flops(), rel=0.02)


def test_work_by_hand():
    # "p p r r r" and "p p r"; the prompt's 3 pairs stand once when it is shared
    assert sequence_work(2, [3, 1], shared=False) == Work(8, (3 + 3 + 4 + 5) + (3 + 3), 4)
    assert sequence_work(2, [3, 1], shared=True) == Work(6, 3 + (3 + 4 + 5) + 3, 4)
    assert Work(1, 2, 3) + Work(10, 20, 30) == Work(11, 22, 33)


def test_packed_work_is_that_of_its_sequences():
    bounds = torch.tensor([0, 5, 8], dtype=torch.int32)
    assert packed_work(bounds, None, 4) == sequence_work(2, [3, 1], shared=False)
    shared = torch.tensor([0, 2, 5, 6], dtype=torch.int32)
    prefix = torch.tensor([-1, 0, 0], dtype=torch.int32)
    assert packed_work(shared, prefix, 4) == sequence_work(2, [3, 1], shared=True)


def test_the_peak_is_stated_where_the_gpu_is_known(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    peak_flops.cache_clear()
    cuda = torch.device("cuda")
    assert peak_flops(cuda, torch.bfloat16) == flops.STATED["H100"][0]
    assert peak_flops(cuda, torch.float32) == flops.STATED["H100"][1]
    peak_flops.cache_clear()
    assert 1e8 < peak_flops(torch.device("cpu"), torch.float32) < 1e14
