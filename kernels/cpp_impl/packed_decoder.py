"""A whole decoder in C++; arguments were validated by `kernels.ops`."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from kernels.cpp_impl.loading import BOOL, F32, F64, I32, I64, PTR, bind


class LinearRecord(ctypes.Structure):
    """LcpoLinear."""

    _fields_ = (("weight", PTR), ("bias", PTR), ("outputs", I64), ("inputs", I64))


_LINEAR = ("q", "k", "v", "o", "gate", "up", "down")
_NORMS = ("input_norm", "post_norm", "q_norm", "k_norm")


class _Layer(ctypes.Structure):
    _fields_ = (*((name, PTR) for name in _NORMS), *((name, LinearRecord) for name in _LINEAR))


class _Model(ctypes.Structure):
    _fields_ = (
        ("layers", ctypes.POINTER(_Layer)),
        *(
            (n, I64)
            for n in ("count", "vocabulary", "hidden", "heads", "kv_heads", "size", "inner")
        ),
        ("embedding", PTR),
        ("norm", PTR),
        ("head", LinearRecord),
        ("eps", F64),
        ("scale", F32),
        ("is_bf16", BOOL),
    )


class _Tokens(ctypes.Structure):
    _fields_ = (
        *((n, PTR) for n in ("tokens", "cos", "sin", "k_cache", "v_cache")),
        ("count", I64),
        ("slots", I64),
        ("workspace", PTR),
    )


class _Rows(ctypes.Structure):
    _fields_ = (
        ("tokens", _Tokens),
        ("lengths", PTR),
        ("block_table", PTR),
        *((n, I64) for n in ("page_size", "pages_per_row", "angles", "steps", "stop")),
    )


class _Prompts(ctypes.Structure):
    _fields_ = (
        ("tokens", _Tokens),
        *((n, PTR) for n in ("cu_seqlens", "prefix", "sources", "targets", "last")),
        *((n, I64) for n in ("sequences", "writes", "wanted")),
        ("hidden", PTR),
    )


class _Draw(ctypes.Structure):
    _fields_ = (
        *((n, PTR) for n in ("seeds", "positions", "tokens", "logprob")),
        ("vocab_size", I64),
        ("top_k", I64),
        ("top_p", F64),
        ("temperature", F32),
        ("head_columns", I64),
    )


# weight, outputs, inputs; packed; threads
_pack = bind("lcpo_pack", PTR, I64, I64, PTR, I32)
_packed_bytes = bind("lcpo_packed_bytes", I64, I64, returns=I64)
_prefill = bind("lcpo_prefill", ctypes.POINTER(_Model), ctypes.POINTER(_Prompts), I32)
_prefill_workspace = bind("lcpo_prefill_workspace", ctypes.POINTER(_Model), I64, returns=I64)
_is_cached = bind("lcpo_is_cached", ctypes.POINTER(_Model), returns=BOOL)
# The first row that is out of range, or -1.
_decode_steps = bind(
    "lcpo_decode_steps", *map(ctypes.POINTER, (_Model, _Rows, _Draw)), I32, returns=I64
)
_decode_workspace = bind("lcpo_decode_workspace", ctypes.POINTER(_Model), I64, returns=I64)
# model; hidden, rows; workspace; draw; threads
_draw = bind("lcpo_draw", ctypes.POINTER(_Model), PTR, I64, PTR, ctypes.POINTER(_Draw), I32)


def _room(size: Callable[[_Model, int], int], model: _Model, rows: int) -> Tensor:
    return torch.empty(size(model, rows), dtype=torch.uint8)


class _Drawn:
    """Tokens, -1 until they are drawn, and log-probs, [*steps, rows]; and how they are drawn."""

    def __init__(
        self,
        sampling: tuple[float, int, float, int],
        seeds: Tensor,
        positions: Tensor,
        head_columns: int,
        *steps: int,
    ) -> None:
        temperature, top_k, top_p, vocab_size = sampling
        shape = (*steps, len(seeds))
        self.tokens, self.logprob = torch.full(shape, -1), torch.zeros(shape)
        given = (x.data_ptr() for x in (seeds, positions, self.tokens, self.logprob))
        self.record = _Draw(*given, vocab_size, top_k, top_p, temperature, head_columns)


class PackedDecoder:
    """See ops.packed_decoder.PackedDecoder; `weights` are its DecoderWeights.

    Log-probs are made of tiles of `head_columns` logits, as in torch_ref.linear_logprob.
    """

    def __init__(self, weights: Any, rows: int, head_columns: int) -> None:
        self._head_columns = head_columns
        self._kept: list[Tensor] = []  # what the records below point to
        embedding = weights.embedding
        self._layers = (_Layer * len(weights.layers))(*map(self._layer, weights.layers))
        self._model = _Model(
            self._layers,
            len(weights.layers),
            *embedding.shape,
            weights.heads,
            weights.kv_heads,
            weights.head_dim,
            weights.layers[0].gate.weight.shape[0],
            self._keep(embedding),
            self._keep(weights.norm),
            self._linear((weights.head, None)),
            weights.eps,
            weights.scale,
            embedding.dtype == torch.bfloat16,
        )
        self._room = _room(_decode_workspace, self._model, rows)
        self.is_cached = _is_cached(self._model)

    def decode(
        self,
        tokens: Tensor,
        lengths: Tensor,
        angles: tuple[Tensor, Tensor],
        caches: tuple[Tensor, Tensor],
        block_table: Tensor,
        sampling: tuple[float, int, float, int],
        seeds: Tensor,
        positions: Tensor,
        steps: int,
        stop_id: int,
    ) -> tuple[Tensor, Tensor, int]:
        """(tokens, logprob, first row that is out of range or -1), all inputs dense."""
        sizes = (caches[0].shape[2], block_table.shape[1], len(angles[0]), steps, stop_id)
        where = _Rows(
            _tokens(tokens, angles, caches, self._room),
            lengths.data_ptr(),
            block_table.data_ptr(),
            *sizes,
        )
        drawn = _Drawn(sampling, seeds, positions, self._head_columns, steps)
        bad = _decode_steps(self._model, where, drawn.record, torch.get_num_threads())
        return drawn.tokens, drawn.logprob, bad

    def draw(
        self,
        hidden: Tensor,
        sampling: tuple[float, int, float, int],
        seeds: Tensor,
        positions: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """(tokens, logprob) after the final states `hidden`, all inputs dense."""
        drawn = _Drawn(sampling, seeds, positions, self._head_columns)
        room = self._room.data_ptr()
        threads = torch.get_num_threads()
        _draw(self._model, hidden.data_ptr(), len(hidden), room, drawn.record, threads)
        return drawn.tokens, drawn.logprob

    def prefill(
        self,
        tokens: Tensor,
        angles: tuple[Tensor, Tensor],
        cu_seqlens: Tensor,
        prefix: Tensor | None,
        caches: tuple[Tensor, Tensor],
        sources: Tensor,
        targets: Tensor,
        last: Tensor,
    ) -> Tensor:
        """Hidden states of `last`, all inputs dense."""
        room = _room(_prefill_workspace, self._model, len(tokens))
        hidden = torch.empty(len(last), self._model.hidden, dtype=caches[0].dtype)
        prompts = _Prompts(
            _tokens(tokens, angles, caches, room),
            cu_seqlens.data_ptr(),
            None if prefix is None else prefix.data_ptr(),
            *(x.data_ptr() for x in (sources, targets, last)),
            len(cu_seqlens) - 1,
            len(sources),
            len(last),
            hidden.data_ptr(),
        )
        _prefill(self._model, prompts, torch.get_num_threads())
        return hidden

    def _layer(self, layer: Any) -> _Layer:
        norms = (self._keep(getattr(layer, name)) for name in _NORMS)
        return _Layer(*norms, *(self._linear(getattr(layer, name)) for name in _LINEAR))

    def _linear(self, layer: Sequence[Tensor | None]) -> LinearRecord:
        weight, bias = layer
        weight = weight.contiguous()
        outputs, inputs = weight.shape
        if weight.dtype == torch.bfloat16:  # read as it lies
            return LinearRecord(self._keep(weight), self._keep(bias), outputs, inputs)
        packed = torch.empty(_packed_bytes(outputs, inputs), dtype=torch.uint8)
        _pack(weight.data_ptr(), outputs, inputs, packed.data_ptr(), torch.get_num_threads())
        return LinearRecord(self._keep(packed), self._keep(bias), outputs, inputs)

    def _keep(self, x: Tensor | None) -> int | None:
        if x is None:
            return None
        x = x.contiguous()
        self._kept.append(x)
        return x.data_ptr()


def _tokens(
    tokens: Tensor, angles: tuple[Tensor, Tensor], caches: tuple[Tensor, Tensor], room: Tensor
) -> _Tokens:
    slots = caches[0].shape[1] * caches[0].shape[2]
    addresses = (x.data_ptr() for x in (tokens, *angles, *caches))
    return _Tokens(*addresses, len(tokens), slots, room.data_ptr())
