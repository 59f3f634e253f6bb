"""Rotary embedding of q and k in one launch; with −sin it is its own gradient.

    out_i = x_i cos_i − x_{i+D/2} sin_i;   out_{i+D/2} = x_{i+D/2} cos_i + x_i sin_i

One program a token: the angles are read once for all heads of q and k, each half of a head is a
dense run of D/2, and the rest is a copy. cos and sin are rounded to the dtype of q as in
transformers; the products are then rounded once, not thrice.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton_impl.common import row_offset, unit_columns

_WARPS = 4


def rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """(q', k') of the shapes of q [T, Hq, D] and k [T, Hkv, D]; cos, sin [T, D/2]. See ops.rope."""
    q, k = unit_columns(q), unit_columns(k)
    tokens, q_heads, size = q.shape
    outputs = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k)]
    rope_kernel[(tokens,)](
        q,
        k,
        *outputs,
        cos.contiguous(),
        sin.contiguous(),
        *q.stride()[:2],
        *k.stride()[:2],
        Q_HEADS=q_heads,
        K_HEADS=k.shape[1],
        Q_TILE=triton.next_power_of_2(q_heads),
        K_TILE=triton.next_power_of_2(k.shape[1]),
        HALF=size // 2,
        WIDE=triton.next_power_of_2(size // 2),
        num_warps=_WARPS,
    )
    return outputs[0], outputs[1]


@triton.jit
def _rotate(
    x,
    out,
    stride,
    cos,
    sin,
    HEADS: tl.constexpr,
    TILE: tl.constexpr,
    HALF: tl.constexpr,
    WIDE: tl.constexpr,
):
    """One token's heads: x with a stride between heads, out dense."""
    head = tl.arange(0, TILE)[:, None]
    column = tl.arange(0, WIDE)[None, :]
    inside = (head < HEADS) & (column < HALF)
    at = row_offset(head, stride) + column
    first = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(x + at + HALF, mask=inside, other=0.0).to(tl.float32)
    at = head * (2 * HALF) + column
    dtype = out.dtype.element_ty
    tl.store(out + at, (first * cos - second * sin).to(dtype), mask=inside)
    tl.store(out + at + HALF, (second * cos + first * sin).to(dtype), mask=inside)


@triton.jit
def rope_kernel(
    q,
    k,
    q_out,
    k_out,
    cos,
    sin,
    q_token,
    q_head,
    k_token,
    k_head,
    Q_HEADS: tl.constexpr,
    K_HEADS: tl.constexpr,
    Q_TILE: tl.constexpr,
    K_TILE: tl.constexpr,
    HALF: tl.constexpr,
    WIDE: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, WIDE)[None, :]
    at = token * HALF + column
    dtype = q.dtype.element_ty
    c = tl.load(cos + at, mask=column < HALF, other=0.0).to(dtype).to(tl.float32)
    s = tl.load(sin + at, mask=column < HALF, other=0.0).to(dtype).to(tl.float32)
    q += token * q_token
    k += token * k_token
    q_out += token * (Q_HEADS * 2 * HALF)
    k_out += token * (K_HEADS * 2 * HALF)
    _rotate(q, q_out, q_head, c, s, Q_HEADS, Q_TILE, HALF, WIDE)
    _rotate(k, k_out, k_head, c, s, K_HEADS, K_TILE, HALF, WIDE)
