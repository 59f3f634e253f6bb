"""Masters in float32 and the bfloat16 copy that computes: who holds what, where sums are made."""

from __future__ import annotations

import pytest
import torch

from kernels import split_bits
from tests.helpers import tiny_decoder, tiny_trainer
from trainer import step
from trainer.model import PackedAttention, has_bfloat16, working_copy
from trainer.model.embedding import Embedding


def rounded(model: torch.nn.Module) -> list[torch.Tensor]:
    return [split_bits(p.detach())[0] for p in model.parameters()]


def test_a_model_in_its_own_dtype_is_its_own_copy(tiny_base):
    model = tiny_decoder()
    assert working_copy(model, torch.float32) is model
    trainer = tiny_trainer(tiny_base)
    assert trainer.working is trainer.model is trainer.engine.model


def test_the_copy_follows_the_optimizer_and_computes_everything(tiny_base):
    trainer = tiny_trainer(tiny_base, "model.dtype=bfloat16")
    assert trainer.engine.model is trainer.working is not trainer.model
    before = rounded(trainer.optimizer.masters())
    for _ in range(2):
        step.train_step(trainer)
        after = rounded(trainer.optimizer.masters())
        for copy, master in zip(trainer.working.parameters(), after, strict=True):
            assert torch.equal(copy, master)
    assert not all(map(torch.equal, before, after))
    assert {p.untyped_storage().nbytes() for p in trainer.model.parameters()} == {4}
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    assert all(p.grad is None for p in trainer.working.parameters())


def test_policy_and_reference_start_as_the_same_function(tiny_base):
    """Both are the start's weights rounded once: a KL that is not 0 would train on rounding."""
    trainer = tiny_trainer(tiny_base, "model.dtype=bfloat16", "algorithm.updates=1")
    assert step.train_step(trainer).metrics["policy/kl"] == 0.0


def test_gradients_of_micro_batches_are_summed_in_float32():
    master = tiny_decoder()
    copy = working_copy(master, torch.bfloat16)
    ids, positions = torch.arange(6), torch.arange(6)
    attend = PackedAttention(torch.tensor([0, 6]).int(), 6, master.config.attention_scale)

    def backward() -> None:
        copy(ids, positions, attend).float().square().sum().backward()

    with torch.no_grad():  # the optimizer's part
        for working, parameter in zip(copy.parameters(), master.parameters(), strict=True):
            working.copy_(parameter)
    backward()
    once = {name: p.grad.clone() for name, p in master.named_parameters() if p.grad is not None}
    assert once["model.norm.weight"].dtype == torch.float32
    for _ in range(600):
        backward()
    for name, parameter in master.named_parameters():
        if name in once:  # in bfloat16 a sum of equal terms stops growing at 256 of them
            torch.testing.assert_close(parameter.grad, 601 * once[name], rtol=1e-4, atol=0)


def test_gradients_of_linear_layers_are_not_rounded():
    """The product's float32 sums reach the master; the copy itself is left without a gradient."""
    master = tiny_decoder()
    copy = working_copy(master, torch.bfloat16)
    layer, of_master = copy.model.layers[0].mlp.down_proj, master.model.layers[0].mlp.down_proj
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        layer.weight.normal_(generator=generator)
    x = torch.randn(50, layer.in_features, generator=generator).bfloat16().requires_grad_()
    grad = torch.randn(50, layer.out_features, generator=generator).bfloat16()
    layer(x).backward(grad)
    wanted = grad.double().t() @ x.detach().double()
    torch.testing.assert_close(of_master.weight.grad.double(), wanted, rtol=1e-5, atol=1e-5)
    assert not torch.equal(of_master.weight.grad, of_master.weight.grad.bfloat16().float())
    assert torch.equal(x.grad, grad @ layer.weight)
    layer(x).backward(grad)
    torch.testing.assert_close(of_master.weight.grad.double(), 2 * wanted, rtol=1e-5, atol=1e-5)
    assert layer.weight.grad is None


def test_gradients_of_the_embedding_are_not_rounded():
    master = tiny_decoder()
    table = working_copy(master, torch.bfloat16).model.embed_tokens
    ids = torch.tensor([2] * 600 + [1])
    for _ in range(2):
        table(ids).backward(torch.full((601, table.embedding_dim), 1.0078125).bfloat16())
    found = master.model.embed_tokens.weight.grad[:, 0]
    assert found[:3].tolist() == [0.0, 2 * 1.0078125, 1200 * 1.0078125]
    assert table.weight.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_frequent_token_gets_all_of_its_gradient(dtype):
    table = Embedding(4, 3, dtype=dtype)
    ids = torch.tensor([2] * 5000 + [1])
    table(ids).sum().backward()
    expected = torch.tensor([0.0, 1, 5000, 0], dtype=dtype)[:, None].expand(4, 3)
    assert torch.equal(table.weight.grad, expected)  # 5000 becomes 4992, rounded once
    assert torch.equal(table(ids[-2:]), table.weight[[2, 1]])


def test_what_has_no_bfloat16_is_seen(monkeypatch):
    for level, supported, expected in (
        ("AVX512", True, True),
        ("AVX512", False, False),
        ("AVX2", True, False),  # torch itself was told to stay below
        ("DEFAULT", False, False),
    ):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda level=level: level)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda s=supported: s)
        assert has_bfloat16("cpu") is expected
