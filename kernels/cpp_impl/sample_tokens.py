"""sample_tokens in C++; arguments were validated by `kernels.ops`."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.cpp_impl.loading import BOOL, F32, F64, I32, I64, PTR, bind

_sample_tokens = bind(
    "lcpo_sample_tokens",
    *(PTR, BOOL, I64, I64, I64),  # logits, is_bf16, rows, stride, vocab_size
    *(F32, I64, F64),  # temperature, top_k, top_p
    *(PTR, PTR, PTR, PTR, PTR),  # seeds, positions; tokens, logprob, cut_logprob
    I32,  # threads
)


def sample_tokens(
    logits: Tensor,
    temperature: float,
    top_k: int,
    top_p: float,
    seeds: Tensor,
    positions: Tensor,
    vocab_size: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """See ops.sample_tokens. Rows may be strided (a slice of a wider tensor), columns not."""
    rows = logits.shape[0]
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    seeds, positions = seeds.contiguous(), positions.contiguous()
    tokens = torch.empty(rows, dtype=torch.int64)
    logprob, cut_logprob = torch.empty(rows), torch.empty(rows)
    _sample_tokens(
        logits.data_ptr(),
        logits.dtype == torch.bfloat16,
        rows,
        logits.stride(0),
        vocab_size,
        temperature,
        top_k,
        top_p,
        seeds.data_ptr(),
        positions.data_ptr(),
        tokens.data_ptr(),
        logprob.data_ptr(),
        cut_logprob.data_ptr(),
        torch.get_num_threads(),
    )
    return tokens, logprob, cut_logprob
