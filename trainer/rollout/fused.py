"""A decoder's weights as kernels.PackedDecoder wants them: prefills and decode steps in one call.

They compute what `Decoder.forward` does; tests/trainer/test_fused.py holds the two together.
"""

from __future__ import annotations

from torch import Tensor, nn

import kernels
from trainer.model import Decoder
from trainer.model.decoder import Layer, RMSNorm
from trainer.model.linear import Linear
from trainer.model.precision import WorkingLinear


def can_fuse(model: Decoder) -> bool:
    """Whether this model can run so: on the CPU, with the compiled library, as it stands.

    Linear layers of another class, parameters that are not plain tensors, and hooks on any part
    mean that somebody wants the model itself to be called.
    """
    if not all(type(p) is nn.Parameter for p in model.parameters()):
        return False
    for module in model.modules():
        if module._forward_hooks or module._forward_pre_hooks:
            return False
        if isinstance(module, nn.Linear) and type(module) not in (Linear, WorkingLinear):
            return False
    return kernels.can_pack(weights(model))


def weights(model: Decoder) -> kernels.DecoderWeights:
    """The model's own tensors, nothing copied."""
    config = model.config
    return kernels.DecoderWeights(
        embedding=model.model.embed_tokens.weight.detach(),
        layers=[_layer(layer) for layer in model.model.layers],
        norm=_norm(model.model.norm),
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
        input_norm=_norm(layer.input_layernorm),
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
    bias = None if layer.bias is None else layer.bias.detach()
    return kernels.Linear(layer.weight.detach(), bias)


def _norm(norm: RMSNorm) -> Tensor:
    return norm.weight.detach()
