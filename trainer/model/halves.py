"""The halves of a layer around its attention, an autograd function each, in place of its modules.

Where kernels.can_halve, that is in bfloat16 on the CPU. Only what the backward pass reads is kept:
the two sums, q, k, v and the attention's output, gate and up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import kernels
from kernels import AfterAttention, BeforeAttention, Linear, WeightSum

if TYPE_CHECKING:
    from trainer.model.decoder import Layer


def fit(layer: Layer, update: Tensor) -> bool:
    """Whether the halves may take the place of the layer's modules for such an input.

    Not where somebody has to see the ops themselves, or hooks on a part of it want it called.
    """
    if update.dtype != torch.bfloat16 or layer.self_attn.qk_norm:
        return False
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0:
        return False
    if type(update) is not Tensor or any(type(p) is not nn.Parameter for p in layer.parameters()):
        return False
    parts = (m for child in layer.children() for m in child.modules())
    if any(m._forward_hooks or m._forward_pre_hooks for m in parts):
        return False
    return kernels.can_halve(_before(layer), _after(layer))


def before_attention(
    layer: Layer, update: Tensor, residual: Tensor | None, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(total, q, k, v) as kernels.before_attention, with gradients."""
    weights = _before(layer)
    if not torch.is_grad_enabled():
        return kernels.before_attention(weights, update, residual, cos, sin)
    modules = _before_modules(layer)
    parameters = _parameters(weights.norm, modules)
    total, *qkv = _Before.apply(weights, modules, update, residual, cos, sin, *parameters)
    return update if residual is None else total, *qkv


def after_attention(layer: Layer, attended: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    """(update, total) as kernels.after_attention, with gradients."""
    weights = _after(layer)
    if not torch.is_grad_enabled():
        return kernels.after_attention(weights, attended, residual, keep=False)[:2]
    modules = _after_modules(layer)
    return _After.apply(weights, modules, attended, residual, *_parameters(weights.norm, modules))


def _before_modules(layer: Layer) -> tuple[nn.Linear, ...]:
    attention = layer.self_attn
    return attention.q_proj, attention.k_proj, attention.v_proj


def _after_modules(layer: Layer) -> tuple[nn.Linear, ...]:
    mlp = layer.mlp
    return layer.self_attn.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj


def _before(layer: Layer) -> BeforeAttention:
    norm = layer.input_layernorm
    linear = (Linear(x.weight, x.bias) for x in _before_modules(layer))
    return BeforeAttention(norm.weight, norm.eps, *linear, layer.self_attn.head_dim)


def _after(layer: Layer) -> AfterAttention:
    norm = layer.post_attention_layernorm
    linear = (Linear(x.weight, x.bias) for x in _after_modules(layer))
    return AfterAttention(norm.weight, norm.eps, *linear)


def _parameters(norm: Tensor, modules: Sequence[nn.Linear]) -> list[Tensor | None]:
    """Norm, then weights and biases: what autograd has to know. Not weights with their own sum."""
    found: list[Tensor | None] = [norm]
    for module in modules:
        found += [None if hasattr(module, "sum") else module.weight, module.bias]
    return found


def _places(modules: Sequence[nn.Linear]) -> list[WeightSum]:
    """Where the gradients of the weights go: a layer may have a sum of its own (precision.py)."""
    return [
        module.sum.place()
        if hasattr(module, "sum")
        else WeightSum(torch.empty_like(module.weight, dtype=torch.float32), add=False)
        for module in modules
    ]


def _gradients(
    modules: Sequence[nn.Linear], places: Sequence[WeightSum], biases: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Of weights and biases, as _parameters; None for those that have a sum of their own."""
    weights = (
        None if hasattr(module, "sum") else place.out.to(module.weight.dtype)
        for module, place in zip(modules, places, strict=True)
    )
    return [gradient for pair in zip(weights, biases, strict=True) for gradient in pair]


class _Before(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights, modules, update, residual, cos, sin, *parameters):
        total, q, k, v = kernels.before_attention(weights, update, residual, cos, sin)
        ctx.save_for_backward(total, cos, sin)
        ctx.weights, ctx.modules, ctx.alone = weights, modules, residual is None
        ctx.set_materialize_grads(False)
        return None if residual is None else total, q, k, v

    @staticmethod
    def backward(ctx: Any, d_total, d_q, d_k, d_v):
        places = _places(ctx.modules)
        found = kernels.before_attention_backward(
            ctx.weights, *ctx.saved_tensors, d_total, d_q, d_k, d_v, places
        )
        parameters = found.d_norm, *_gradients(ctx.modules, places, found.biases)
        return None, None, found.d_x, None if ctx.alone else found.d_x, None, None, *parameters


class _After(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights, modules, attended, residual, *parameters):
        update, total, gate, up = kernels.after_attention(weights, attended, residual, keep=True)
        ctx.save_for_backward(attended, total, gate, up)
        ctx.weights, ctx.modules = weights, modules
        ctx.set_materialize_grads(False)
        return update, total

    @staticmethod
    def backward(ctx: Any, d_update, d_total):
        places = _places(ctx.modules)
        found = kernels.after_attention_backward(
            ctx.weights, *ctx.saved_tensors, d_update, d_total, places
        )
        parameters = found.d_norm, *_gradients(ctx.modules, places, found.biases)
        return None, None, found.d_attended, found.d_x, *parameters
