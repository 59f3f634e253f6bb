"""A whole decoder without gradients: prompts into a paged cache, and decode steps, a call each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kernels import dispatch
from kernels.ops.checks import (
    require_cu_seqlens,
    require_dtype,
    require_groups,
    require_range,
    require_shape,
)
from kernels.ops.sample_tokens import require_sampling
from kernels.ops.varlen_attention import require_prefix

STEPS_AHEAD = 8  # decode steps a call, of weights that caches hold


class Linear(NamedTuple):
    """x · weightᵀ + bias."""

    weight: Tensor  # [out, in]
    bias: Tensor | None = None  # [out]


class LayerWeights(NamedTuple):
    """Of a pre-norm layer with grouped-query attention and a gated MLP."""

    input_norm: Tensor  # [H]
    q: Linear  # [Hq · D, H]
    k: Linear  # [Hkv · D, H]
    v: Linear
    q_norm: Tensor | None  # [D], of each head before the rotation
    k_norm: Tensor | None
    o: Linear  # [H, Hq · D]
    post_norm: Tensor  # [H]
    gate: Linear  # [I, H]
    up: Linear
    down: Linear  # [H, I]


class DecoderWeights(NamedTuple):
    """A decoder, all of one dtype."""

    embedding: Tensor  # [V, H]
    layers: Sequence[LayerWeights]
    norm: Tensor  # [H]
    head: Tensor  # [V, H]
    heads: int  # Hq
    kv_heads: int  # Hkv
    head_dim: int  # D
    eps: float  # of the norms
    scale: float  # of the attention scores


def can_pack(weights: DecoderWeights) -> bool:
    """Whether PackedDecoder runs such weights: on the CPU, where all of its parts would take C++.

    float32, or bfloat16 on processors that multiply it; in bfloat16 rows of even length.
    """
    first = weights.embedding
    linear = (x for layer in weights.layers for x in layer if isinstance(x, Linear))
    odd = first.dtype == torch.bfloat16 and any(x.weight.shape[1] % 2 for x in linear)
    if odd or weights.head_dim % 2 or not weights.layers:
        return False
    return dispatch.packed_decoder(first.device, first.dtype) is not None


class PackedDecoder:
    """A decoder for prefills, and decode steps of at most `rows` rows.

    float32 weights are packed: a copy, to be made anew after an update; bfloat16 ones are read
    where they lie. The arithmetic is that of the ops in turn, but for the order of the sums in
    bfloat16 products with weights: in float32 a token has the bits that linear, rms_norm, rope,
    varlen_attention, swiglu and linear_logprob give it. A token's result depends on nothing else
    in the batch, and not on the number of threads.

    ValueError for weights that do not fit together; can_pack says beforehand whether it runs.
    """

    def __init__(self, weights: DecoderWeights, rows: int) -> None:
        _check(weights)
        run = dispatch.packed_decoder(weights.embedding.device, weights.embedding.dtype)
        if run is None:
            raise ValueError("a PackedDecoder runs on the CPU only, with the compiled library")
        self.weights, self.rows, self._run = weights, rows, run(weights, rows)

    @property
    def steps_ahead(self) -> int:
        """How many steps one `decode` should take.

        1 where weights exceed the caches: looking at the tokens costs nothing beside a step, and
        a step costs little less where sequences have ended.
        """
        return STEPS_AHEAD if self._run.is_cached else 1

    def decode(
        self,
        tokens: Tensor,
        lengths: Tensor,
        cos: Tensor,
        sin: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        block_table: Tensor,
        *,
        temperature: float,
        top_k: int = 0,
        top_p: float = 1.0,
        seeds: Tensor,
        positions: Tensor,
        vocab_size: int | None = None,
        steps: int = 1,
        stop_id: int = -1,
    ) -> tuple[Tensor, Tensor]:
        """(next tokens int64 [steps, B], their log-probabilities float32); see sample_tokens.

        tokens int64 [B], the last token of each row, goes to position lengths int64 [B] of its
        sequence, and its keys and values to the caches [layers, P, page, Hkv, D], in place: page
        block_table[b, lengths // page], int32 [B, N]. cos, sin float32 [N', D / 2] hold the angles
        of positions 0 to N' - 1 (see rope). Each further step takes the token drawn before, lengths
        and positions one higher. Behind `stop_id`, and behind -1 (NaN logits), a row takes no step:
        its tokens are -1 from there on, and their log-probabilities 0. All else is as in
        paged_decode_attention and sample_tokens.
        Raises ValueError for shapes that do not fit and for values out of range: before any step.
        """
        rows = tokens.shape[0]
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        self._require_tokens(tokens, cos.shape[0], cos, sin, k_cache, v_cache)
        require_shape("block_table", block_table, (rows, None))
        require_dtype("block_table", block_table, torch.int32)
        require_shape("lengths", lengths, (rows,))
        require_dtype("lengths", lengths, torch.int64)
        sampling = self._sampling(rows, temperature, top_k, top_p, seeds, positions, vocab_size)
        drawn, logprob, bad = self._run.decode(
            tokens.contiguous(),
            lengths.contiguous(),
            (cos.contiguous(), sin.contiguous()),
            (k_cache, v_cache),
            block_table.contiguous(),
            sampling,
            seeds.contiguous(),
            positions.contiguous(),
            steps,
            stop_id,
        )
        if bad >= 0:
            raise ValueError(
                f"row {bad} is out of range: token {int(tokens[bad])}, {int(lengths[bad])} tokens "
                f"in the cache and {steps} more, pages {block_table[bad].tolist()}, angles of "
                f"{cos.shape[0]} positions"
            )
        return drawn, logprob

    def draw(
        self,
        hidden: Tensor,
        *,
        temperature: float,
        top_k: int = 0,
        top_p: float = 1.0,
        seeds: Tensor,
        positions: Tensor,
        vocab_size: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """What `decode` draws from final states hidden [B, H], as `prefill` gives them."""
        rows = hidden.shape[0]
        require_shape("hidden", hidden, (rows, self.weights.head.shape[1]))
        require_dtype("hidden", hidden, self.weights.head.dtype)
        sampling = self._sampling(rows, temperature, top_k, top_p, seeds, positions, vocab_size)
        return self._run.draw(
            hidden.contiguous(), sampling, seeds.contiguous(), positions.contiguous()
        )

    def prefill(
        self,
        tokens: Tensor,
        cos: Tensor,
        sin: Tensor,
        cu_seqlens: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        *,
        sources: Tensor,
        targets: Tensor,
        last: Tensor,
        prefix: Tensor | None = None,
    ) -> Tensor:
        """Hidden states [n, H] after the final norm of tokens `last` int64 [n], no two alike.

        tokens int64 [T] lie packed as in varlen_attention: cu_seqlens int32 [B + 1], prefix int32
        [B] or None. Keys and values of token sources[i] go to slot targets[i], page · page size +
        place in it, of the caches, in place; int64 [W] both. cos, sin float32 [T, D / 2].
        Raises ValueError for shapes that do not fit and for values out of range.
        """
        total = tokens.shape[0]
        self._require_tokens(tokens, total, cos, sin, k_cache, v_cache)
        require_cu_seqlens(cu_seqlens, total)
        if prefix is not None:
            require_prefix(prefix, cu_seqlens)
        require_shape("targets", targets, tuple(sources.shape))
        slots = k_cache.shape[1] * k_cache.shape[2]
        limits = (("tokens", tokens, self.weights.embedding.shape[0]), ("sources", sources, total))
        for name, x, stop in (*limits, ("targets", targets, slots), ("last", last, total)):
            require_dtype(name, x, torch.int64)
            require_range(name, x, 0, stop)
        return self._run.prefill(
            tokens.contiguous(),
            (cos.contiguous(), sin.contiguous()),
            cu_seqlens.contiguous(),
            None if prefix is None else prefix.contiguous(),
            (k_cache, v_cache),
            *(x.contiguous() for x in (sources, targets, last)),
        )

    def _sampling(
        self,
        rows: int,
        temperature: float,
        top_k: int,
        top_p: float,
        seeds: Tensor,
        positions: Tensor,
        vocab_size: int | None,
    ) -> tuple[float, int, float, int]:
        """(temperature, top_k, top_p, vocab_size) after the checks of sample_tokens."""
        if rows > self.rows:
            raise ValueError(f"{rows} rows, but there is room for {self.rows}")
        columns = self.weights.head.shape[0]
        return require_sampling(
            rows, columns, temperature, top_k, top_p, seeds, positions, vocab_size
        )

    def _require_tokens(
        self,
        tokens: Tensor,
        angles: int,
        cos: Tensor,
        sin: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
    ) -> None:
        w = self.weights
        require_shape("tokens", tokens, tuple(tokens.shape[:1]))
        require_dtype("tokens", tokens, torch.int64)
        for name, x in (("cos", cos), ("sin", sin)):
            require_shape(name, x, (angles, w.head_dim // 2))
            require_dtype(name, x, torch.float32)
        shape = (len(w.layers), *k_cache.shape[1:3], w.kv_heads, w.head_dim)
        for name, x in (("k_cache", k_cache), ("v_cache", v_cache)):
            require_shape(name, x, shape)
            require_dtype(name, x, w.embedding.dtype)
            if not x.is_contiguous():
                raise ValueError(f"{name} must be dense: it is written in place")


def _check(w: DecoderWeights) -> None:
    """ValueError for shapes and dtypes that do not fit together."""
    hidden, dtype = w.embedding.shape[1], w.embedding.dtype
    require_groups(w.heads, w.kv_heads)
    width, kv_width = w.heads * w.head_dim, w.kv_heads * w.head_dim
    inner = w.layers[0].gate.weight.shape[0]
    linear = {"q": (width, hidden), "k": (kv_width, hidden), "v": (kv_width, hidden)}
    linear |= {"o": (hidden, width), "gate": (inner, hidden), "up": (inner, hidden)}
    linear |= {"down": (hidden, inner)}
    norms = {"input_norm": hidden, "post_norm": hidden, "q_norm": w.head_dim, "k_norm": w.head_dim}
    found = [("norm", w.norm, (hidden,)), ("head", w.head, tuple(w.embedding.shape))]
    for index, layer in enumerate(w.layers):
        for name, shape in linear.items():
            weight, bias = getattr(layer, name)
            found.append((f"layer {index}, {name}", weight, shape))
            found.append((f"layer {index}, bias of {name}", bias, shape[:1]))
        for name, size in norms.items():
            found.append((f"layer {index}, {name}", getattr(layer, name), (size,)))
    for name, tensor, shape in found:
        if tensor is not None:
            require_shape(name, tensor, shape)
            require_dtype(name, tensor, dtype)
