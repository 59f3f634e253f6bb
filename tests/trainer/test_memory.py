"""Activations: what a pass keeps, counted and measured, and layers that make theirs again."""

from __future__ import annotations

import pytest
import torch

from tests.helpers import tiny_trainer
from trainer import step
from trainer.config import MemorySettings
from trainer.memory import GIB, activation_bytes, free_bytes, recomputed_layers
from trainer.model import Decoder, ModelConfig, PackedAttention
from trainer.plan.meter import Meter

SIZES = (320, 64, 160, 4, 4, 2, 16)  # V, H, I, layers, heads, key heads, head size


def kept_bytes(model: Decoder, tokens: int) -> int:
    """Bytes that a forward pass leaves for its backward pass: all that is new and still there."""
    attend = PackedAttention(torch.tensor([0, tokens]).int(), tokens, 0.25)
    ids, positions = torch.ones(tokens, dtype=torch.int64), torch.arange(tokens)
    with Meter("cpu") as meter:
        with meter.labelled("given"):
            given = [x.detach() for x in (*model.parameters(), ids, positions, attend.cu_seqlens)]
        hidden = model(ids, positions, attend)
    assert hidden.requires_grad and given
    return meter.live["other"]


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_count_is_what_a_pass_keeps(family, dtype):
    config = ModelConfig(family, *SIZES)
    model = Decoder(config, dtype=dtype)
    model.init_weights(0)
    expected = activation_bytes(config, 256, dtype)
    assert kept_bytes(model, 256) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_making_activations_again_changes_no_bit(dtype, tiny_base):
    found = {}
    for activations in ("none", "full"):
        trainer = tiny_trainer(
            tiny_base, f"model.dtype={dtype}", f"memory.activations={activations}"
        )
        assert trainer.working.model.recomputed == (2 if activations == "full" else 0)
        metrics = [step.train_step(trainer).metrics for _ in range(2)]
        found[activations] = metrics, [*trainer.optimizer.masters().parameters()]
    assert found["none"][0] == found["full"][0]
    assert all(map(torch.equal, found["none"][1], found["full"][1]))


def test_a_recomputed_layer_keeps_its_input_only():
    config = ModelConfig("llama", *SIZES)
    model = Decoder(config)
    model.init_weights(0)
    whole = kept_bytes(model, 256)
    model.model.recomputed = 4
    assert kept_bytes(model, 256) < whole / 3


def test_auto_recomputes_as_few_layers_as_fit():
    config = ModelConfig("llama", *SIZES)
    facts = {"tokens": 1000, "dtype": torch.float32, "parameters": 1000}

    def layers(budget: float, activations: str = "auto", free: float = 0) -> int:
        settings = MemorySettings(activations, budget / GIB)
        return recomputed_layers(settings, config, free=int(free), **facts)

    sizes = [activation_bytes(config, 1000, torch.float32, n) for n in range(5)]
    assert sizes[1:] == sorted(sizes[1:], reverse=True)
    assert layers(sizes[0]) == 0 and layers(sizes[0], "full") == 4 and layers(1, "none") == 0
    assert [layers(size) for size in sizes[2:]] == [2, 3, 4]
    assert layers(1) == 4  # nothing fits: as small as it gets
    assert layers(0, free=sizes[2] / 0.8 + 12_001) == 2  # what is free, less the optimizer's part
    assert layers(0, free=sizes[2] / 0.8) == 3


def test_free_memory_of_this_machine():
    assert 1e6 < free_bytes(torch.device("cpu")) < 1e14
