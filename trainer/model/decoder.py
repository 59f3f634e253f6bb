"""One decoder for Qwen2, Llama and Qwen3, used by training and rollout alike.

Parameter names are Hugging Face's, so state dicts need no mapping. Sequences come packed, without
a batch dimension or padding; what a token attends to is decided by the `attend` callable (see
attention.py), so there is one definition of the mathematics.

Shape letters: T tokens, H hidden size, I intermediate size, V vocabulary rows, D head size,
Hq query heads, Hkv key/value heads.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kernels import linear, rms_norm, rope, swiglu
from trainer.model import halves
from trainer.model.again import Again, kept, made_again
from trainer.model.attention import Attend
from trainer.model.config import ModelConfig, RopeConfig
from trainer.model.embedding import Embedding
from trainer.model.linear import Linear

INIT_STD = 0.02  # transformers' initializer_range for all three families


class Decoder(nn.Module):
    """Token ids to hidden states; the head is applied by the caller to the rows it needs.

    `device="meta"` builds it without storage (see weights.load_model); `dtype` is that of all
    parameters: float32 for master weights, bfloat16 for a frozen or compute copy.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.model = Backbone(config, device, dtype)
        if not config.tie_word_embeddings:
            self.lm_head = Linear(
                config.hidden_size, config.vocab_size, bias=False, device=device, dtype=dtype
            )

    def forward(self, input_ids: Tensor, position_ids: Tensor, attend: Attend) -> Tensor:
        """Hidden states [T, H] after the final norm.

        input_ids, position_ids: int64 [T]; positions restart at 0 in each sequence.
        """
        return self.model(input_ids, position_ids, attend)

    @property
    def head_weight(self) -> Tensor:
        """Weight of the LM head [V, H]; the embedding itself when the two are tied."""
        if self.config.tie_word_embeddings:
            return self.model.embed_tokens.weight
        return self.lm_head.weight

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [T, V] of hidden states [T, H], in their dtype; for few rows (rollout, tests)."""
        return linear(hidden, self.head_weight)

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Initialise for training from scratch as transformers does: N(0, 0.02), zeros, ones.

        Drawn in float32 on the CPU, so one seed gives the same model on every device.
        """
        generator = torch.Generator("cpu").manual_seed(seed)
        for name, parameter in self.named_parameters():
            if name.endswith(".bias"):
                parameter.zero_()
            elif parameter.ndim == 1:  # the weight of a norm
                parameter.fill_(1.0)
            else:
                draw = torch.empty(parameter.shape, dtype=torch.float32, device="cpu")
                parameter.copy_(draw.normal_(0.0, INIT_STD, generator=generator))


class Backbone(nn.Module):
    """Embedding, layers and final norm: all but the head (`model.` in the parameter names)."""

    def __init__(
        self, config: ModelConfig, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> None:
        super().__init__()
        self.embed_tokens = Embedding(
            config.vocab_size, config.hidden_size, device=device, dtype=dtype
        )
        self.layers = nn.ModuleList(
            Layer(config, index, device, dtype) for index in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, device, dtype)
        self.rotary = Rotary(config.head_dim, config.rope)
        self.recomputed = 0  # layers, from the first on, that keep only their input (memory.py)

    def forward(self, input_ids: Tensor, position_ids: Tensor, attend: Attend) -> Tensor:
        """Hidden states [T, H] after the final norm; see Decoder.forward."""
        cos, sin = self.rotary(position_ids)  # float32 [T, D/2] each
        update = self.embed_tokens(input_ids)  # [T, H]
        residual = None
        for index, layer in enumerate(self.layers):
            run = layer
            if index < self.recomputed and torch.is_grad_enabled():
                run = partial(
                    checkpoint, layer, again=kept, use_reentrant=False, preserve_rng_state=False
                )
            update, residual = run(update, residual, cos, sin, attend)
        hidden, _ = self.norm(update, residual)
        return hidden  # [T, H]


class Layer(nn.Module):
    """Pre-norm attention and MLP. Each addition to the residual is fused with the next norm."""

    def __init__(
        self,
        config: ModelConfig,
        index: int,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.rms_norm_eps
        self.input_layernorm = RMSNorm(size, eps, device, dtype)
        self.self_attn = Attention(config, index, device, dtype)
        self.post_attention_layernorm = RMSNorm(size, eps, device, dtype)
        self.mlp = MLP(config, device, dtype)

    def forward(
        self,
        update: Tensor,
        residual: Tensor | None,
        cos: Tensor,
        sin: Tensor,
        attend: Attend,
        again: Again = made_again,
    ) -> tuple[Tensor, Tensor]:
        """(update, residual), both [T, H]; the true hidden state is their sum."""
        if halves.fit(self, update):
            residual, q, k, v = halves.before_attention(self, update, residual, cos, sin)
            attended = attend(self.self_attn.index, q, k, v)
            return halves.after_attention(self, attended.flatten(-2), residual)
        hidden, residual = self.input_layernorm(update, residual)
        with again(hidden, partial(self.input_layernorm.of_sum, residual.detach())):
            update = self.self_attn(hidden, cos, sin, attend)
        hidden, residual = self.post_attention_layernorm(update, residual)
        with again(hidden, partial(self.post_attention_layernorm.of_sum, residual.detach())):
            return self.mlp(hidden, again), residual


class Attention(nn.Module):
    """Grouped-query attention with rotary positions; Qwen3 normalises q and k per head."""

    def __init__(
        self,
        config: ModelConfig,
        index: int,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.index = index
        self.head_dim = config.head_dim
        width = config.num_attention_heads * config.head_dim  # Hq * D
        kv_width = config.num_key_value_heads * config.head_dim  # Hkv * D
        hidden, bias, place = (
            config.hidden_size,
            config.qkv_bias,
            {"device": device, "dtype": dtype},
        )
        self.q_proj = Linear(hidden, width, bias=bias, **place)
        self.k_proj = Linear(hidden, kv_width, bias=bias, **place)
        self.v_proj = Linear(hidden, kv_width, bias=bias, **place)
        self.o_proj = Linear(width, hidden, bias=config.attention_bias, **place)
        self.qk_norm = config.qk_norm
        if self.qk_norm:
            self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps, device, dtype)
            self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps, device, dtype)

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        """[T, H] to [T, H]; cos and sin float32 [T, D/2] of the tokens' positions."""
        q = self.q_proj(hidden).unflatten(-1, (-1, self.head_dim))  # [T, Hq, D]
        k = self.k_proj(hidden).unflatten(-1, (-1, self.head_dim))  # [T, Hkv, D]
        v = self.v_proj(hidden).unflatten(-1, (-1, self.head_dim))  # [T, Hkv, D]
        if self.qk_norm:
            q, _ = self.q_norm(q)
            k, _ = self.k_norm(k)
        q, k = rope(q, k, cos, sin)
        out = attend(self.index, q, k, v)  # [T, Hq, D]
        return self.o_proj(out.flatten(-2))  # [T, H]


class MLP(nn.Module):
    """Gated MLP: down(silu(gate(x)) * up(x))."""

    def __init__(
        self, config: ModelConfig, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        options = {"bias": config.mlp_bias, "device": device, "dtype": dtype}
        self.gate_proj = Linear(hidden, inner, **options)
        self.up_proj = Linear(hidden, inner, **options)
        self.down_proj = Linear(inner, hidden, **options)

    def forward(self, hidden: Tensor, again: Again) -> Tensor:
        """[T, H] to [T, H]."""
        gate, up = self.gate_proj(hidden), self.up_proj(hidden)  # [T, I]
        inner = swiglu(gate, up)
        with again(inner, partial(swiglu, gate.detach(), up.detach())):
            return self.down_proj(inner)


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension, with the residual addition fused in."""

    def __init__(
        self,
        size: int,
        eps: float,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size, device=device, dtype=dtype))

    def forward(self, update: Tensor, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(norm(update + residual), update + residual), each of the shape of `update`."""
        if residual is None:
            return rms_norm(update, self.weight, self.eps), update
        return rms_norm(update, self.weight, self.eps, residual)

    def of_sum(self, total: Tensor) -> Tensor:
        """norm(total), total = update + residual: the bits of `forward`, without a gradient."""
        return rms_norm(total, self.weight.detach(), self.eps)


class Rotary:
    """Cosines and sines of the rotary embedding, always in float32.

    Not a module: a buffer would be cast by `.to(bfloat16)` and be left without values by a build
    on the meta device, and both make wrong angles in silence.
    """

    def __init__(self, head_dim: int, config: RopeConfig) -> None:
        self.inv_freq = inverse_frequencies(head_dim, config)  # follows its input's device

    def __call__(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin, float32 [T, D/2] each, of position_ids int64 [T]."""
        self.inv_freq = self.inv_freq.to(position_ids.device)
        angles = position_ids.float()[:, None] * self.inv_freq  # [T, D/2]
        return angles.cos(), angles.sin()


def inverse_frequencies(head_dim: int, config: RopeConfig) -> Tensor:
    """Inverse frequencies, float32 [D/2] on the CPU, scaled as transformers does bit for bit.

    "llama3" keeps short waves, divides long ones by `factor`, and blends in between
    (Llama 3.1 reference code).
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu") / head_dim
    inv_freq = 1.0 / (config.theta**exponents)
    if config.kind == "default":
        return inv_freq
    if config.kind == "linear":
        return inv_freq / config.factor
    wavelength = 2 * math.pi / inv_freq
    trained = config.original_max_position_embeddings
    low, high = config.low_freq_factor, config.high_freq_factor
    blend = (trained / wavelength - low) / (high - low)  # 0 at the long end, 1 at the short one
    blended = (1 - blend) * inv_freq / config.factor + blend * inv_freq
    scaled = torch.where(wavelength > trained / low, inv_freq / config.factor, blended)
    return torch.where(wavelength < trained / high, inv_freq, scaled)
