"""A decoder's weights as kernels.DecodeStep wants them: a whole decode step in one call.

The step computes what `Decoder.forward` does on cached sequences; tests/trainer/test_fused.py holds
the two together.
"""

from __future__ import annotations

from torch import Tensor, nn

import kernels
from trainer.model import Decoder
from trainer.model.decoder import Layer


def can_fuse(model: Decoder) -> bool:
    """Whether the step runs this model: plain layers on the CPU, with the compiled library.

    Layers of another class than nn.Linear (batch-invariant ones, wrapped ones), parameters that are
    not plain tensors, and hooks on any part mean that somebody wants the model to be called.
    """
    plain = all(type(p) is nn.Parameter for p in model.parameters())
    modules = [m for m in model.modules() if type(m).__module__ != Layer.__module__]
    known = all(type(m) is nn.Linear or not list(m.parameters(recurse=False)) for m in modules[1:])
    return plain and known and kernels.can_decode(weights(model))


def weights(model: Decoder) -> kernels.DecodeWeights:
    """The model's own tensors, nothing copied."""
    config = model.config
    return kernels.DecodeWeights(
        embedding=model.model.embed_tokens.weight.detach(),
        layers=[_layer(layer) for layer in model.model.layers],
        norm=model.model.norm.weight.detach(),
        head=model.head_weight.detach(),
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        eps=config.rms_norm_eps,
        scale=config.attention_scale,
    )


def _layer(layer: Layer) -> kernels.LayerWeights:
    attention, mlp = layer.self_attn, layer.mlp
    return kernels.LayerWeights(
        input_norm=layer.input_layernorm.weight.detach(),
        q=_linear(attention.q_proj),
        k=_linear(attention.k_proj),
        v=_linear(attention.v_proj),
        q_norm=_norm(attention.q_norm) if attention.qk_norm else None,
        k_norm=_norm(attention.k_norm) if attention.qk_norm else None,
        o=_linear(attention.o_proj),
        post_norm=_norm(layer.post_attention_layernorm),
        gate=_linear(mlp.gate_proj),
        up=_linear(mlp.up_proj),
        down=_linear(mlp.down_proj),
    )


def _linear(layer: nn.Linear) -> kernels.Linear:
    return kernels.Linear(layer.weight.detach(), None if layer.bias is None else layer.bias.detach())


def _norm(norm: nn.Module) -> Tensor:
    return norm.weight.detach()
