"""The halves of a layer in place of its modules: where they run, and their gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import kernels
from kernels.implementations import HALF_LAYERS
from tests.helpers import gradient_distance
from trainer.model import Decoder, ModelConfig, PackedAttention, empty_copy, halves, working_copy
from trainer.rollout import fused

MODELS = {
    "llama": ModelConfig("llama", 320, 36, 70, 3, 3, 1, 12, mlp_bias=True, attention_bias=True),
    "qwen2": ModelConfig("qwen2", 320, 64, 300, 2, 4, 2, 16, tie_word_embeddings=True),
}
IDS = torch.arange(90) % 31
POSITIONS = torch.cat([torch.arange(40), torch.arange(50)])
ENDS = torch.tensor([0, 40, 90], dtype=torch.int32)
OPS = ",".join(f"{op}=torch" for op in HALF_LAYERS)

pytestmark = pytest.mark.skipif(
    kernels.active_backends(dtype=torch.bfloat16)["before_attention"] != "cpp",
    reason="this processor has no AVX-512 BF16, or AMX, or there is no compiled library",
)


def decoder(name: str) -> Decoder:
    """Weights that bfloat16 holds, biases and norms that are not zeros and ones."""
    model = Decoder(MODELS[name])
    model.init_weights(0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(parameter.bfloat16())
    return model


def hidden_of(model: Decoder) -> Tensor:
    return model(IDS, POSITIONS, PackedAttention(ENDS, 50, model.config.attention_scale))


def backward(model: Decoder) -> None:
    out = hidden_of(model)
    weights = torch.linspace(-1, 1, out.numel()).sin().view_as(out)
    (out.float() * weights).sum().backward()


def gradients(model: Decoder) -> list[Tensor]:
    return [p.grad for p in model.parameters() if p.grad is not None]


def trained(master: Decoder, *, recomputed: int = 0) -> list[Tensor]:
    """The master's gradients after two backward passes of its working copy."""
    copy = working_copy(master, torch.bfloat16)
    copy.load_state_dict(master.state_dict())
    copy.model.recomputed = recomputed
    for _ in range(2):
        backward(copy)
    return gradients(master)


@pytest.mark.parametrize("name", MODELS)
def test_gradients_err_no_more_than_those_of_the_ops(name):
    """Both against the same weights in float32."""
    wide = decoder(name)
    for _ in range(2):
        backward(wide)
    ours = trained(decoder(name))
    with kernels.override(OPS):
        theirs = trained(decoder(name))
    errors = [gradient_distance(gradients(wide), found) for found in (ours, theirs)]
    assert errors[0] < 1.2 * errors[1] < 0.1


@pytest.mark.parametrize("name", MODELS)
def test_a_model_without_masters_has_the_same_gradients_rounded(name):
    master, plain = decoder(name), decoder(name).bfloat16()
    copy = working_copy(master, torch.bfloat16)
    copy.load_state_dict(master.state_dict())
    backward(copy)
    backward(plain)
    of_layers = [n for n, _ in plain.named_parameters() if ".layers." in n]
    found, want = (dict(model.named_parameters()) for model in (plain, master))
    assert all(torch.equal(found[n].grad, want[n].grad.bfloat16()) for n in of_layers)


def test_layers_that_are_made_again_change_no_bit():
    kept, again = trained(decoder("qwen2")), trained(decoder("qwen2"), recomputed=2)
    assert all(map(torch.equal, kept, again))


@pytest.mark.parametrize("name", MODELS)
def test_training_has_the_bits_of_the_rollout(name):
    model = decoder(name).bfloat16()
    config, tokens = model.config, len(IDS)
    shape = (config.num_hidden_layers, tokens, 1, config.num_key_value_heads, config.head_dim)
    caches = [torch.zeros(shape, dtype=torch.bfloat16) for _ in range(2)]
    every = torch.arange(tokens)
    packed = kernels.PackedDecoder(fused.weights(model), tokens)
    found = packed.prefill(
        IDS, *model.model.rotary(POSITIONS), ENDS, *caches, sources=every, targets=every, last=every
    )
    assert torch.equal(found, hidden_of(model).detach())
    with torch.no_grad():
        assert torch.equal(found, hidden_of(model))


def test_whoever_looks_on_sees_the_ops():
    model = decoder("qwen2").bfloat16()
    layer, x = model.model.layers[0], torch.ones(5, 64).bfloat16()
    assert halves.fit(layer, x) and not halves.fit(layer, x.float())
    called = []
    hook = layer.mlp.up_proj.register_forward_hook(lambda *_: called.append(1))
    backward(model)
    assert called
    hook.remove()
    with FlopCounterMode(display=False) as flops:
        hidden_of(model)
    linear = sum(p.numel() for n, p in model.named_parameters() if "proj.weight" in n)
    assert flops.get_total_flops() >= 2 * linear * len(IDS)
    with kernels.override("torch"):
        assert not halves.fit(layer, x)


def test_norms_of_heads_are_left_to_the_ops():
    config = ModelConfig("qwen3", 330, 48, 96, 1, 2, 2, 32)
    model = empty_copy(Decoder(config), torch.bfloat16)
    assert not halves.fit(model.model.layers[0], torch.ones(5, 48).bfloat16())
