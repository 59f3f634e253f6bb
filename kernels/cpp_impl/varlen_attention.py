"""varlen_attention in C++; arguments were validated by `kernels.ops`."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.cpp_impl.loading import BOOL, F32, I32, I64, PTR, bind

_forward = bind(
    "lcpo_varlen_attention_forward",
    *(PTR, PTR, PTR, BOOL),  # q, k, v, is_bf16
    *(PTR, PTR, I64),  # cu_seqlens, prefix, sequences
    *(I64, I64, I64, F32),  # heads, kv_heads, size, scale
    *(PTR, PTR, I32),  # out, lse; threads
)
_backward = bind(
    "lcpo_varlen_attention_backward",
    *(PTR, PTR, PTR, PTR, PTR, PTR, BOOL),  # grad_out, q, k, v, out, lse, is_bf16
    *(PTR, PTR, I64),  # cu_seqlens, prefix, sequences
    *(I64, I64, I64, F32),  # heads, kv_heads, size, scale
    *(PTR, PTR, PTR, I32),  # dq, dk, dv; threads
)


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    scale: float,
    prefix: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See ops.varlen_attention; (out, lse)."""
    q, k, v = (x.contiguous() for x in (q, k, v))
    cu_seqlens, prefix = _on_host(cu_seqlens), _on_host(prefix)
    out, lse = torch.empty_like(q), torch.empty(q.shape[1], q.shape[0])
    _forward(
        *(x.data_ptr() for x in (q, k, v)),
        q.dtype == torch.bfloat16,
        *_shape(q, k, cu_seqlens, prefix),
        scale,
        out.data_ptr(),
        lse.data_ptr(),
        torch.get_num_threads(),
    )
    return out, lse


def backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    scale: float,
    prefix: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dq, dk, dv) from what `forward` was given and returned."""
    inputs = [x.contiguous() for x in (grad_out, q, k, v, out, lse)]
    cu_seqlens, prefix = _on_host(cu_seqlens), _on_host(prefix)
    grads = [torch.empty_like(x) for x in inputs[1:4]]
    _backward(
        *(x.data_ptr() for x in inputs),
        q.dtype == torch.bfloat16,
        *_shape(q, k, cu_seqlens, prefix),
        scale,
        *(x.data_ptr() for x in grads),
        torch.get_num_threads(),
    )
    return tuple(grads)


def _on_host(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.cpu().contiguous()


def _shape(q: Tensor, k: Tensor, cu_seqlens: Tensor, prefix: Tensor | None) -> tuple[int, ...]:
    """Addresses of cu_seqlens and prefix (0: none), sequences, heads, kv_heads, size."""
    shared = 0 if prefix is None else prefix.data_ptr()
    sizes = (cu_seqlens.shape[0] - 1, q.shape[1], k.shape[1], q.shape[2])
    return cu_seqlens.data_ptr(), shared, *sizes
