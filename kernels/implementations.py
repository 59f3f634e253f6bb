"""What runs an op: {op: {backend: implementation}}. dispatch.py chooses."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.cpp_impl import adamw_split as cpp_adamw_split
from kernels.cpp_impl import count_lengths as cpp_count_lengths
from kernels.cpp_impl import half_layers as cpp_half_layers
from kernels.cpp_impl import lcpo_advantage as cpp_lcpo_advantage
from kernels.cpp_impl import linear as cpp_linear
from kernels.cpp_impl import logprob_from_logits as cpp_logprob_from_logits
from kernels.cpp_impl import logprob_rows as cpp_logprob_rows
from kernels.cpp_impl import paged_decode_attention as cpp_paged_decode_attention
from kernels.cpp_impl import policy_loss as cpp_policy_loss
from kernels.cpp_impl import product as cpp_product
from kernels.cpp_impl import rms_norm as cpp_rms_norm
from kernels.cpp_impl import rope as cpp_rope
from kernels.cpp_impl import sample_tokens as cpp_sample_tokens
from kernels.cpp_impl import swiglu as cpp_swiglu
from kernels.cpp_impl import varlen_attention as cpp_varlen_attention
from kernels.cuda_impl import paged_decode_attention as cuda_paged_decode_attention
from kernels.cuda_impl import varlen_attention as cuda_varlen_attention
from kernels.torch_ref import (
    adamw_split,
    count_lengths,
    half_layers,
    lcpo_advantage,
    linear_logprob,
    linear_policy_loss,
    logprob_from_logits,
    paged_decode_attention,
    policy_loss,
    rms_norm,
    rope,
    sample_tokens,
    swiglu,
    varlen_attention,
)
from kernels.torch_ref.split_bits import join_bits, split_bits

__all__ = ["HALF_LAYERS", "IMPLEMENTATIONS", "join_bits", "logits_product", "product", "split_bits"]


HALF_LAYERS = (
    "before_attention",
    "before_attention_backward",
    "after_attention",
    "after_attention_backward",
)


def _triton(path: str) -> Callable:
    """`module.function` of kernels.triton_impl, imported at its first call: triton loads slowly."""
    module, name = path.split(".")

    def run(*arguments: object) -> object:
        kernel = getattr(importlib.import_module(f"kernels.triton_impl.{module}"), name)
        # Triton launches on the current device, which need not be that of the tensors.
        with torch.cuda.device_of(next(x for x in arguments if isinstance(x, torch.Tensor))):
            return kernel(*arguments)

    return run


def product(a: Tensor, b: Tensor, out: Tensor, *, add: bool) -> None:
    """torch's, but for bfloat16 with a float32 result on processors that have it."""
    ours = a.dtype == torch.bfloat16 and out.dtype == torch.float32 and b.stride(1) == 1
    run = cpp_product.product if ours and cpp_product.supported() else linear_logprob.product
    run(a, b, out, add=add)


def logits_product(hidden: Tensor, head: Tensor, out: Tensor) -> Tensor:
    """The product of `linear` in float32, so that a log-prob does not depend on the other rows."""
    if hidden.dtype == torch.float32:
        return cpp_linear.linear_into(hidden, head, None, out)
    return linear_logprob.logits_product(hidden, head, out)


IMPLEMENTATIONS: dict[str, dict[str, Callable]] = {
    # float32 only in C++: bfloat16 has the vendor's product.
    "linear": {"torch": F.linear, "cpp": cpp_linear.linear},
    # bfloat16 only in C++.
    **{
        op: {"torch": getattr(half_layers, op), "cpp": getattr(cpp_half_layers, op)}
        for op in HALF_LAYERS
    },
    # Products are torch's, but for what it lacks (product, logits_product); C++ and Triton pass
    # over the rows.
    "linear_logprob": {
        "torch": linear_logprob.forward,
        "cpp": partial(
            linear_logprob.forward,
            rows_kernel=cpp_logprob_rows.logprob_rows,
            merge=cpp_logprob_rows.merge,
            logits_product=logits_product,
        ),
        "triton": partial(linear_logprob.forward, rows_kernel=_triton("logprob_rows.logprob_rows")),
    },
    "linear_logprob_backward": {
        "torch": linear_logprob.backward,
        "cpp": partial(
            linear_logprob.backward,
            rows_kernel=cpp_logprob_rows.logprob_rows_backward,
            product=product,
            logits_product=logits_product,
        ),
        "triton": partial(
            linear_logprob.backward, rows_kernel=_triton("logprob_rows.logprob_rows_backward")
        ),
    },
    "linear_policy_loss": {
        "torch": linear_policy_loss.linear_policy_loss,
        "cpp": partial(
            linear_policy_loss.linear_policy_loss,
            rows_kernel=cpp_logprob_rows.logprob_rows,
            rows_backward=cpp_logprob_rows.logprob_rows_backward,
            loss_kernel=cpp_policy_loss.policy_loss,
            product=product,
            merge=cpp_logprob_rows.merge,
            logits_product=logits_product,
        ),
        "triton": partial(
            linear_policy_loss.linear_policy_loss,
            rows_kernel=_triton("logprob_rows.logprob_rows"),
            rows_backward=_triton("logprob_rows.logprob_rows_backward"),
            loss_kernel=_triton("policy_loss.policy_loss"),
        ),
    },
    "logprob_from_logits": {
        "torch": logprob_from_logits.forward,
        "cpp": cpp_logprob_from_logits.forward,
        "triton": _triton("logprob_rows.logprob_from_logits"),
    },
    "logprob_from_logits_backward": {
        "torch": logprob_from_logits.backward,
        "cpp": cpp_logprob_from_logits.backward,
        "triton": _triton("logprob_rows.logprob_from_logits_backward"),
    },
    "count_lengths": {
        "torch": count_lengths.count_lengths,
        "cpp": cpp_count_lengths.count_lengths,
        "triton": _triton("count_lengths.count_lengths"),
    },
    "lcpo_advantage": {
        "torch": lcpo_advantage.lcpo_advantage,
        "cpp": cpp_lcpo_advantage.lcpo_advantage,
        "triton": _triton("lcpo_advantage.lcpo_advantage"),
    },
    "policy_loss": {
        "torch": policy_loss.policy_loss,
        "cpp": cpp_policy_loss.policy_loss,
        "triton": _triton("policy_loss.policy_loss"),
    },
    "sample_tokens": {
        "torch": sample_tokens.sample_tokens,
        "cpp": cpp_sample_tokens.sample_tokens,
        "triton": _triton("sample_tokens.sample_tokens"),
    },
    "rms_norm": {
        "torch": rms_norm.forward,
        "cpp": cpp_rms_norm.forward,
        "triton": _triton("rms_norm.forward"),
    },
    "rms_norm_backward": {
        "torch": rms_norm.backward,
        "cpp": cpp_rms_norm.backward,
        "triton": _triton("rms_norm.backward"),
    },
    "rope": {"torch": rope.rope, "cpp": cpp_rope.rope, "triton": _triton("rope.rope")},
    "swiglu": {
        "torch": swiglu.forward,
        "cpp": cpp_swiglu.forward,
        "triton": _triton("swiglu.forward"),
    },
    "swiglu_backward": {
        "torch": swiglu.backward,
        "cpp": cpp_swiglu.backward,
        "triton": _triton("swiglu.backward"),
    },
    "adamw_split": {
        "torch": adamw_split.adamw_split_,
        "cpp": cpp_adamw_split.adamw_split_,
        "triton": _triton("adamw_split.adamw_split_"),
    },
    "varlen_attention": {
        "torch": varlen_attention.forward,
        "cpp": cpp_varlen_attention.forward,
        "cuda": cuda_varlen_attention.forward,
    },
    "varlen_attention_backward": {
        "torch": varlen_attention.backward,
        "cpp": cpp_varlen_attention.backward,
        "cuda": cuda_varlen_attention.backward,
    },
    "paged_decode_attention": {
        "torch": paged_decode_attention.paged_decode_attention,
        "cpp": cpp_paged_decode_attention.paged_decode_attention,
        "cuda": partial(
            cuda_paged_decode_attention.paged_decode_attention,
            otherwise=_triton("paged_decode_attention.paged_decode_attention"),
        ),
        "triton": _triton("paged_decode_attention.paged_decode_attention"),
    },
}
