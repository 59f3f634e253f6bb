"""Passes over fake tensors: the graph is walked as autograd's engine does, on a GPU if need be."""

from __future__ import annotations

import pytest
import torch

from tests.helpers import tiny_decoder
from trainer.model import Decoder, ModelConfig, PackedAttention
from trainer.model.precision import send_gradients
from trainer.plan.fake import backward, fake_tensors, why_no_cuda
from trainer.plan.meter import Meter

needs_fakes = pytest.mark.skipif(why_no_cuda() is not None, reason=str(why_no_cuda()))


def loss_of(model: Decoder) -> torch.Tensor:
    device = model.head_weight.device
    attend = PackedAttention(torch.tensor([0, 5, 12], dtype=torch.int32), 7, 0.3)
    ids = torch.arange(12, device=device)
    return model.logits(model(ids, ids, attend)).float().logsumexp(-1).sum()


def gradients(model: Decoder) -> list[torch.Tensor]:
    found = [p.grad for p in model.parameters()]
    model.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("recomputed", [0, 1, 2])
def test_the_walk_of_the_graph_is_the_engines(recomputed):
    model = tiny_decoder()
    model.model.recomputed = recomputed
    loss_of(model).backward()
    expected = gradients(model)
    leaves = []
    for _ in range(2):  # the second time adds to the first
        backward(loss_of(model), leaves.append)
    assert len(leaves) == 2 * len(expected)
    for found, right in zip(gradients(model), expected, strict=True):
        torch.testing.assert_close(found, 2 * right, rtol=1e-6, atol=1e-6)


@needs_fakes
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_a_pass_on_the_gpu_path(family):
    config = ModelConfig(family, 320, 64, 160, 4, 4, 2, 16)
    with fake_tensors("cuda"), Meter("cuda") as meter:
        with meter.labelled("masters"):
            model = Decoder(config, device="cuda")
        working = Decoder(config, device="cuda", dtype=torch.bfloat16)
        send_gradients(working, model)
        backward(loss_of(working))
        assert meter.live["masters"] == 4 * sum(p.numel() for p in model.parameters())
        for parameter, of in zip(model.parameters(), working.parameters(), strict=True):
            assert parameter.grad.dtype == torch.float32 and of.grad is None
            assert parameter.grad.device.type == "cuda"


@needs_fakes
def test_a_tensor_left_on_the_wrong_device_is_found():
    with fake_tensors("cuda"):
        model = Decoder(ModelConfig("llama", 320, 64, 160, 4, 4, 2, 16), device="cuda")
        attend = PackedAttention(torch.tensor([0, 4], dtype=torch.int32), 4, 0.3)
        positions = torch.arange(4, device="cuda")
        with pytest.raises(RuntimeError, match=r"device|cpu"):
            model(torch.arange(4), positions, attend) @ torch.ones(64, 1)


def test_memory_is_counted_while_it_lives():
    with Meter("cpu") as meter:
        with meter.labelled("a"):
            kept = torch.zeros(100)
            view = kept[:50]
        with meter.labelled("b"):
            gone = torch.zeros(1000)
        assert meter.live == {"a": 400, "b": 4000}
        del gone
        assert meter.live["b"] == 0 and meter.peak.total() == 4400
        meter.relabel(view, "c")
        meter.reset()
        assert +meter.live == {"c": 400} == meter.peak
    assert kept.sum() == 0


def test_gathers_cost_what_they_take():
    table, index = torch.zeros(1000, 8), torch.arange(3)
    with Meter("cpu") as meter:
        table.index_copy_(0, index, torch.ones(3, 8))
        taken = table[index]
    assert [record.bytes for record in meter.records[-2:]] == 2 * [2 * taken.numel() * 4]
