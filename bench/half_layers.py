"""`python -m bench.half_layers`: a decoder layer but for its attention."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import kernels
from bench import rms_norm, rope, swiglu
from bench.case import Bench, Case
from bench.harness import main
from kernels.implementations import HALF_LAYERS
from trainer.model import ModelConfig
from trainer.model.decoder import Layer

HEAD = 32
OPS = ",".join(f"{op}=torch" for op in HALF_LAYERS)  # the layer then takes the ops one by one


def queries(index: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """In the place of attention; k and v go along so that they have gradients."""
    return q + k + v


def eager(layer: Layer, cos: Tensor, sin: Tensor) -> Callable[..., tuple[Tensor, Tensor]]:
    """As transformers writes it, but for the attention."""
    attention, mlp = layer.self_attn, layer.mlp

    def run(update: Tensor, residual: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        hidden, total = rms_norm.eager(update, layer.input_layernorm.weight, residual)
        q, k, v = (
            F.linear(hidden, x.weight).unflatten(-1, (-1, HEAD))
            for x in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        out = queries(0, *rope.eager(q, k, cos, sin), v).flatten(-2)
        update = F.linear(out, attention.o_proj.weight)
        hidden, total = rms_norm.eager(update, layer.post_attention_layernorm.weight, total)
        gate, up = (F.linear(hidden, x.weight) for x in (mlp.gate_proj, mlp.up_proj))
        return F.linear(swiglu.eager(gate, up), mlp.down_proj.weight), total

    return run


def make(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Case:
    """Products are all of the work that counts."""
    tokens, hidden, inner = shape
    heads = hidden // HEAD
    config = ModelConfig("llama", 2, hidden, inner, 1, heads, heads, HEAD)
    layer = Layer(config, 0, device, dtype)
    states = [
        torch.randn(tokens, hidden, device=device).to(dtype).requires_grad_() for _ in range(2)
    ]
    angles = torch.rand(tokens, HEAD // 2, device=device)
    cos, sin = angles.cos(), angles.sin()

    def ours(update: Tensor, residual: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        return layer(update, residual, cos, sin, queries)

    def by_ops(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        with kernels.override(OPS):
            return ours(*inputs)

    weights = list(layer.parameters())
    flops = 2.0 * tokens * sum(w.numel() for w in weights if w.ndim == 2)
    size = sum(x.numel() for x in (*states, *states, *weights)) * dtype.itemsize
    return Case(
        (*states, *weights),
        {"ours": ours, "op by op": by_ops, "eager": eager(layer, cos, sin)},
        work=((flops, size), (2 * flops, 2 * size)),
        gemm=(tokens, hidden, inner),
    )


BENCH = Bench(
    "half_layers",
    make,
    "T H I",
    shapes=[(4096, 128, 352), (4096, 576, 1536)],
    quick=[(64, 64, 34)],
    gpu=[(16_384, 1536, 8960)],
    dtypes=(torch.bfloat16,),
)
if __name__ == "__main__":
    main(BENCH)
