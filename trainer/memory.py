"""What a forward pass keeps for its backward pass, and how many layers can afford to keep it.

A layer that does not keep its activations makes them again from its input (torch.utils.checkpoint,
arXiv 1604.06174): a third more arithmetic for the layer, and not a bit of difference.
"""

from __future__ import annotations

from pathlib import Path

import torch

from trainer.config import MemorySettings
from trainer.model import ModelConfig

GIB = 2**30
SHARE = 0.8  # of the free memory that activations may take: allocators leave gaps
OPTIMIZER = 12  # bytes a parameter that come later: gradient and two moments in float32


def layer_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    """Of one token in one layer: what the backward passes of its ops read."""
    width = config.num_attention_heads * config.head_dim
    kv_width = config.num_key_value_heads * config.head_dim
    # Two sums that norms read; q, k, v and the attention's output; gate and up. What the norms and
    # gate and up give is made again (model/again.py).
    kept = 2 * config.hidden_size + 2 * width + 2 * kv_width + 2 * config.intermediate_size
    if config.qk_norm:
        kept += width + kv_width
    statistics = 4 * (2 + config.num_attention_heads)  # of the norms, and log-sum-exps
    return kept * dtype.itemsize + statistics


def activation_bytes(
    config: ModelConfig, tokens: int, dtype: torch.dtype, recomputed: int = 0
) -> int:
    """Of a forward pass over `tokens` with `recomputed` layers that keep their input only.

    While such a layer's backward pass runs, one layer's activations are there again, all of them:
    nothing is made again twice.
    """
    layer = layer_bytes(config, dtype)
    whole = layer + (2 * config.hidden_size + config.intermediate_size) * dtype.itemsize
    boundary = 2 * config.hidden_size * dtype.itemsize
    kept = (config.num_hidden_layers - recomputed) * layer + recomputed * boundary
    return tokens * (kept + (whole if recomputed else 0) + boundary)


def free_bytes(device: torch.device) -> int:
    """Memory that can still be taken: of the GPU, or what the system calls available."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept  # what torch holds to give out again
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return 1024 * int(next(x for x in lines if x.startswith("MemAvailable:")).split()[1])


def recomputed_layers(
    settings: MemorySettings,
    config: ModelConfig,
    *,
    tokens: int,
    dtype: torch.dtype,
    parameters: int,
    free: int,
) -> int:
    """memory.activations as a number of layers; "auto": as few as fit.

    `tokens` of a micro-batch; `free` bytes before the optimizer has its gradients and moments of
    `parameters` numbers. When even all layers are not enough, it is all of them.
    """
    layers = config.num_hidden_layers
    if settings.activations != "auto":
        return layers if settings.activations == "full" else 0
    budget = settings.budget_gib * GIB or SHARE * (free - OPTIMIZER * parameters)
    for recomputed in range(layers):
        if activation_bytes(config, tokens, dtype, recomputed) <= budget:
            return recomputed
    return layers
