"""varlen_attention on CUDA: flash-attn, else torch's copy of it, else SDPA by sequence."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.cuda_impl.loading import flash_attn, takes


def forward(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, scale: float
) -> tuple[Tensor, Tensor]:
    """See ops.varlen_attention; (out, lse), lse of zeros from SDPA, whose backward needs none."""
    if not takes(q):
        return _sdpa(q, k, v, cu_seqlens, scale), q.new_zeros(q.shape[1::-1], dtype=torch.float32)
    bounds = cu_seqlens.to(q.device, non_blocking=True)
    lengths = (bounds, bounds, max_seqlen, max_seqlen)
    package = flash_attn()
    if package:
        out, lse, _ = package.flash_attn_varlen_func(
            q, k, v, *lengths, softmax_scale=scale, causal=True, return_attn_probs=True
        )
    else:  # what torch.nn.attention.varlen calls, in older versions too
        out, lse, *_ = torch.ops.aten._flash_attention_forward(
            *(x.contiguous() for x in (q, k, v)), *lengths, 0.0, True, False, scale=scale
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
) -> tuple[Tensor, Tensor, Tensor]:
    """(dq, dk, dv) from what `forward` was given and returned."""
    if not takes(q):
        with torch.enable_grad():
            leaves = [x.detach().requires_grad_() for x in (q, k, v)]
            return torch.autograd.grad(_sdpa(*leaves, cu_seqlens, scale), leaves, grad_out)
    tensors = [x.contiguous() for x in (grad_out, q, k, v, out, lse)]
    bounds = cu_seqlens.to(q.device, non_blocking=True)
    lengths = (bounds, bounds, max_seqlen, max_seqlen)
    package = flash_attn()
    if package:
        grads = tuple(torch.empty_like(x) for x in tensors[1:4])
        package._flash_attn_varlen_backward(
            *tensors,
            *grads,
            *lengths,
            dropout_p=0.0,
            softmax_scale=scale,
            causal=True,
            window_size_left=-1,
            window_size_right=-1,
            softcap=0.0,
            alibi_slopes=None,
            deterministic=True,
        )
        return grads
    no_dropout = torch.zeros(2, dtype=torch.uint64, device=q.device)
    unused = torch.empty(0, device=q.device)
    return torch.ops.aten._flash_attention_backward(
        *tensors, *lengths, 0.0, True, no_dropout, unused, scale=scale
    )


def _sdpa(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, scale: float) -> Tensor:
    out = []
    for start, stop in pairwise(cu_seqlens.tolist()):
        rows = [x[start:stop].transpose(0, 1)[None] for x in (q, k, v)]  # [1, heads, n, D]
        attended = F.scaled_dot_product_attention(
            *rows, is_causal=True, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
        )
        out.append(attended[0].transpose(0, 1))
    return torch.cat(out)
