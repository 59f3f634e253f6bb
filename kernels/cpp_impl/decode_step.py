"""decode_step in C++; arguments were validated by `kernels.ops`."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kernels.cpp_impl import product
from kernels.cpp_impl.loading import BOOL, F32, F64, I32, I64, PTR, bind, library


class _Linear(ctypes.Structure):
    _fields_ = (("weight", PTR), ("bias", PTR), ("outputs", I64), ("inputs", I64))


_LINEAR = ("q", "k", "v", "o", "gate", "up", "down")
_NORMS = ("input_norm", "post_norm", "q_norm", "k_norm")


class _Layer(ctypes.Structure):
    _fields_ = (*((name, PTR) for name in _NORMS), *((name, _Linear) for name in _LINEAR))


class _Model(ctypes.Structure):
    _fields_ = (
        ("layers", ctypes.POINTER(_Layer)),
        *((n, I64) for n in ("count", "vocabulary", "hidden", "heads", "kv_heads", "size", "inner")),
        ("embedding", PTR),
        ("norm", PTR),
        ("head", _Linear),
        ("eps", F64),
        ("scale", F32),
        ("is_bf16", BOOL),
    )


class _Rows(ctypes.Structure):
    _fields_ = (
        *((n, PTR) for n in ("tokens", "lengths", "cos", "sin", "k_cache", "v_cache")),
        ("block_table", PTR),
        *((n, I64) for n in ("rows", "pages", "page_size", "pages_per_row")),
        ("workspace", PTR),
    )


class _Draw(ctypes.Structure):
    _fields_ = (
        *((n, PTR) for n in ("seeds", "positions", "tokens", "logprob")),
        ("vocab_size", I64),
        ("top_k", I64),
        ("top_p", F64),
        ("temperature", F32),
    )


# weight, is_bf16, outputs, inputs; packed; threads
_pack = bind("lcpo_pack", PTR, BOOL, I64, I64, PTR, I32)


@functools.cache
def _functions() -> tuple[Any, Any, Any]:
    """Those that return a number: lcpo_packed_bytes, lcpo_decode_workspace, lcpo_decode_step."""
    packed, workspace, step = (
        getattr(library(), name)
        for name in ("lcpo_packed_bytes", "lcpo_decode_workspace", "lcpo_decode_step")
    )
    packed.argtypes, packed.restype = (BOOL, I64, I64), I64
    workspace.argtypes, workspace.restype = (ctypes.POINTER(_Model), I64), I64
    records = (ctypes.POINTER(x) for x in (_Model, _Rows, _Draw))
    step.argtypes, step.restype = (*records, I32), I64
    return packed, workspace, step


def supported(dtype: torch.dtype) -> bool:
    """Whether this processor multiplies such matrices here: bfloat16 needs AVX-512 BF16."""
    return dtype == torch.float32 or (dtype == torch.bfloat16 and product.supported())


class DecodeStep:
    """See ops.decode_step.DecodeStep; `weights` are its DecodeWeights."""

    def __init__(self, weights: Any, rows: int) -> None:
        self._kept: list[Tensor] = []  # what the records below point to
        embedding, is_bf16 = weights.embedding, weights.embedding.dtype == torch.bfloat16
        self._layers = (_Layer * len(weights.layers))(*map(self._layer, weights.layers))
        self._model = _Model(
            self._layers,
            len(weights.layers),
            *embedding.shape,
            weights.heads,
            weights.kv_heads,
            weights.head_dim,
            weights.layers[0].gate[0].shape[0],
            self._keep(embedding),
            self._keep(weights.norm),
            self._linear((weights.head, None)),
            weights.eps,
            weights.scale,
            is_bf16,
        )
        self._workspace = torch.empty(_functions()[1](self._model, rows), dtype=torch.uint8)

    def __call__(
        self,
        tokens: Tensor,
        lengths: Tensor,
        angles: tuple[Tensor, Tensor],
        caches: tuple[Tensor, Tensor],
        block_table: Tensor,
        sampling: tuple[float, int, float, int],
        seeds: Tensor,
        positions: Tensor,
    ) -> tuple[Tensor, Tensor, int]:
        """(tokens, logprob, first row that is out of range or -1), all inputs dense."""
        rows = len(tokens)
        temperature, top_k, top_p, vocab_size = sampling
        where = _Rows(
            *(x.data_ptr() for x in (tokens, lengths, *angles, *caches, block_table)),
            rows,
            *caches[0].shape[1:3],
            block_table.shape[1],
            self._workspace.data_ptr(),
        )
        drawn, logprob = torch.empty(rows, dtype=torch.int64), torch.empty(rows)
        draw = _Draw(
            *(x.data_ptr() for x in (seeds, positions, drawn, logprob)),
            vocab_size,
            top_k,
            top_p,
            temperature,
        )
        bad = _functions()[2](self._model, where, draw, torch.get_num_threads())
        return drawn, logprob, bad

    def _layer(self, layer: Any) -> _Layer:
        norms = (self._keep(getattr(layer, name)) for name in _NORMS)
        return _Layer(*norms, *(self._linear(getattr(layer, name)) for name in _LINEAR))

    def _linear(self, layer: Sequence[Tensor | None]) -> _Linear:
        weight, bias = layer
        weight = weight.contiguous()
        outputs, inputs = weight.shape
        is_bf16 = weight.dtype == torch.bfloat16
        packed = torch.empty(_functions()[0](is_bf16, outputs, inputs), dtype=torch.uint8)
        _pack(
            weight.data_ptr(),
            is_bf16,
            outputs,
            inputs,
            packed.data_ptr(),
            torch.get_num_threads(),
        )
        return _Linear(self._keep(packed), self._keep(bias), outputs, inputs)

    def _keep(self, x: Tensor | None) -> int | None:
        if x is None:
            return None
        x = x.contiguous()
        self._kept.append(x)
        return x.data_ptr()
