"""The halves of a decoder layer in C++; arguments were validated by `kernels.ops`."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kernels.cpp_impl.loading import BOOL, F64, I32, I64, PTR, bind
from kernels.cpp_impl.packed_decoder import LinearRecord


class _Half(ctypes.Structure):
    _fields_ = (("tokens", I64), ("hidden", I64), ("norm", PTR), ("eps", F64))


class _Gradient(ctypes.Structure):
    _fields_ = (("weight", PTR), ("bias", PTR), ("add", BOOL))


class _Before(ctypes.Structure):
    _fields_ = (
        ("half", _Half),
        *((name, LinearRecord) for name in ("q", "k", "v")),
        ("cos", PTR),
        ("sin", PTR),
        ("size", I64),
        *((name, _Gradient) for name in ("d_q", "d_k", "d_v")),
    )


class _After(ctypes.Structure):
    _fields_ = (
        ("half", _Half),
        *((name, LinearRecord) for name in ("o", "gate", "up", "down")),
        *((name, _Gradient) for name in ("d_o", "d_gate", "d_up", "d_down")),
    )


_BEFORE, _AFTER = ctypes.POINTER(_Before), ctypes.POINTER(_After)
# update, residual; total, q, k, v; threads
_before = bind("lcpo_before_attention", _BEFORE, *(PTR,) * 6, I32)
# total, d_q, d_k, d_v, d_total; d_x, d_norm; threads
_before_backward = bind("lcpo_before_attention_backward", _BEFORE, *(PTR,) * 7, I32)
# attended, residual; total, gate, up, update; threads
_after = bind("lcpo_after_attention", _AFTER, *(PTR,) * 6, I32)
# attended, total, gate, up, d_update, d_total; d_x, d_attended, d_norm; threads
_after_backward = bind("lcpo_after_attention_backward", _AFTER, *(PTR,) * 9, I32)
_has_half_layers = bind("lcpo_has_half_layers", returns=BOOL)


@functools.cache
def supported() -> bool:
    """Whether this processor multiplies bfloat16 with AVX-512, and not with AMX tiles.

    With those, the vendor's products and the ops one by one stay: nothing here was measured there.
    """
    return _has_half_layers()


def before_attention(
    layer: Any, update: Tensor, residual: Tensor | None, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See ops.half_layers.before_attention."""
    record = _Record(update.shape[0])
    update, residual = record.dense(update), record.dense(residual)
    total = update if residual is None else torch.empty_like(update)
    q, k, v = (
        _empty(update, x.weight.shape[0]).unflatten(1, (-1, layer.head_dim))
        for x in (layer.q, layer.k, layer.v)
    )
    _call(_before, record.before(layer, cos, sin), (update, residual, total, q, k, v))
    return total, q, k, v


def before_attention_backward(
    layer: Any,
    total: Tensor,
    cos: Tensor,
    sin: Tensor,
    d_total: Tensor | None,
    d_q: Tensor,
    d_k: Tensor,
    d_v: Tensor,
    sums: Sequence[Any],
) -> tuple[Tensor, Tensor, tuple[Tensor | None, ...]]:
    """See ops.half_layers.before_attention_backward."""
    record = _Record(total.shape[0])
    given = [record.dense(x) for x in (total, d_q, d_k, d_v, d_total)]
    d_x, d_norm = torch.empty_like(given[0]), torch.empty_like(layer.norm)
    biases = tuple(map(_bias_like, (layer.q, layer.k, layer.v)))
    before = record.before(layer, cos, -sin, _gradients(sums, biases))
    _call(_before_backward, before, (*given, d_x, d_norm))
    return d_x, d_norm, biases


def after_attention(
    layer: Any, attended: Tensor, residual: Tensor, *, keep: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """See ops.half_layers.after_attention."""
    record = _Record(residual.shape[0])
    attended, residual = record.dense(attended), record.dense(residual)
    update, total = torch.empty_like(residual), torch.empty_like(residual)
    gate = up = None
    if keep:
        gate, up = (_empty(residual, layer.gate.weight.shape[0]) for _ in range(2))
    _call(_after, record.after(layer), (attended, residual, total, gate, up, update))
    return update, total, gate, up


def after_attention_backward(
    layer: Any,
    attended: Tensor,
    total: Tensor,
    gate: Tensor,
    up: Tensor,
    d_update: Tensor,
    d_total: Tensor | None,
    sums: Sequence[Any],
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor | None, ...]]:
    """See ops.half_layers.after_attention_backward."""
    record = _Record(total.shape[0])
    given = [record.dense(x) for x in (attended, total, gate, up, d_update, d_total)]
    d_x, d_attended = torch.empty_like(given[1]), torch.empty_like(given[0])
    d_norm = torch.empty_like(layer.norm)
    biases = tuple(map(_bias_like, (layer.o, layer.gate, layer.up, layer.down)))
    after = record.after(layer, _gradients(sums, biases))
    _call(_after_backward, after, (*given, d_x, d_attended, d_norm))
    return d_x, d_attended, d_norm, biases


class _Record:
    """Weights as C++ reads them; keeps alive all that these point to."""

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens
        self._kept: list[Tensor] = []

    def dense(self, x: Tensor | None) -> Tensor | None:
        if x is not None:
            x = x.contiguous()
            self._kept.append(x)
        return x

    def before(
        self, layer: Any, cos: Tensor, sin: Tensor, gradients: Sequence[_Gradient] = ()
    ) -> _Before:
        linear = (self._linear(x) for x in (layer.q, layer.k, layer.v))
        angles = (self._address(cos), self._address(sin))
        return _Before(self._half(layer), *linear, *angles, layer.head_dim, *gradients)

    def after(self, layer: Any, gradients: Sequence[_Gradient] = ()) -> _After:
        linear = (self._linear(x) for x in (layer.o, layer.gate, layer.up, layer.down))
        return _After(self._half(layer), *linear, *gradients)

    def _half(self, layer: Any) -> _Half:
        return _Half(self._tokens, layer.norm.shape[0], self._address(layer.norm), layer.eps)

    def _linear(self, linear: Any) -> LinearRecord:
        weight, bias = linear
        addresses = self._address(weight), None if bias is None else self._address(bias)
        return LinearRecord(*addresses, *weight.shape)

    def _address(self, x: Tensor) -> int:
        return self.dense(x).data_ptr()


def _gradients(sums: Sequence[Any], biases: Sequence[Tensor | None]) -> list[_Gradient]:
    return [
        _Gradient(out.data_ptr(), None if bias is None else bias.data_ptr(), add)
        for (out, add), bias in zip(sums, biases, strict=True)
    ]


def _bias_like(linear: Any) -> Tensor | None:
    return None if linear.bias is None else torch.empty_like(linear.bias)


def _empty(like: Tensor, width: int) -> Tensor:
    return like.new_empty(like.shape[0], width)


def _call(run: Any, record: ctypes.Structure, tensors: tuple[Tensor | None, ...]) -> None:
    addresses = (None if x is None else x.data_ptr() for x in tensors)
    run(record, *addresses, torch.get_num_threads())
