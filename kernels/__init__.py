"""Numerical ops of the trainer: they know tensors and nothing of `trainer`.

Importing this package imports neither triton nor the compiled library; `dispatch` picks a backend
at the call. Each op's contract is the docstring of its function in `kernels.ops`.
"""

from kernels.dispatch import active_backends, override
from kernels.ops.adamw_split import adamw_split_
from kernels.ops.count_lengths import Lengths, count_lengths
from kernels.ops.half_layers import (
    AfterAttention,
    BeforeAttention,
    WeightSum,
    after_attention,
    after_attention_backward,
    before_attention,
    before_attention_backward,
    can_halve,
)
from kernels.ops.lcpo_advantage import RewardSpec, RewardTerms, lcpo_advantage
from kernels.ops.linear import linear
from kernels.ops.linear_logprob import linear_logprob
from kernels.ops.linear_policy_loss import linear_policy_loss
from kernels.ops.logprob_from_logits import logprob_from_logits
from kernels.ops.packed_decoder import (
    DecoderWeights,
    LayerWeights,
    Linear,
    PackedDecoder,
    can_pack,
)
from kernels.ops.paged_decode_attention import paged_decode_attention
from kernels.ops.policy_loss import PolicyStats, policy_loss
from kernels.ops.product import product
from kernels.ops.rms_norm import rms_norm
from kernels.ops.rope import rope
from kernels.ops.sample_tokens import Sampled, sample_tokens
from kernels.ops.split_bits import join_bits, split_bits
from kernels.ops.swiglu import swiglu
from kernels.ops.varlen_attention import varlen_attention

__all__ = [
    "AfterAttention",
    "BeforeAttention",
    "DecoderWeights",
    "LayerWeights",
    "Lengths",
    "Linear",
    "PackedDecoder",
    "PolicyStats",
    "RewardSpec",
    "RewardTerms",
    "Sampled",
    "WeightSum",
    "active_backends",
    "adamw_split_",
    "after_attention",
    "after_attention_backward",
    "before_attention",
    "before_attention_backward",
    "can_halve",
    "can_pack",
    "count_lengths",
    "join_bits",
    "lcpo_advantage",
    "linear",
    "linear_logprob",
    "linear_policy_loss",
    "logprob_from_logits",
    "override",
    "paged_decode_attention",
    "policy_loss",
    "product",
    "rms_norm",
    "rope",
    "sample_tokens",
    "split_bits",
    "swiglu",
    "varlen_attention",
]
