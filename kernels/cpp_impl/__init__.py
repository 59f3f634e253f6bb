"""The compiled C++ backend, loaded at first use through its plain C interface."""

from kernels.cpp_impl.loading import library, why_missing
from kernels.cpp_impl.ops import (
    DTYPES,
    count_lengths,
    logprob_rows,
    logprob_rows_backward,
    sample_tokens,
)

__all__ = [
    "DTYPES",
    "count_lengths",
    "library",
    "logprob_rows",
    "logprob_rows_backward",
    "sample_tokens",
    "why_missing",
]
