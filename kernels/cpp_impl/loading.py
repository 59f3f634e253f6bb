"""Finds and loads the compiled library (csrc/api.h is its interface)."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

PATH = Path(__file__).with_name("liblcpo_kernels.so")
ABI_VERSION = 1  # of csrc/api.h; raise both when a signature changes

_I32, _I64, _F32, _PTR = ctypes.c_int32, ctypes.c_int64, ctypes.c_float, ctypes.c_void_p
_SIGNATURES = {
    "lcpo_count_lengths": (_PTR, _PTR, _I64, _I64, _PTR, _I64, _PTR, _PTR, _PTR, _PTR),
    "lcpo_sample_tokens": (
        *(_PTR, _I64, _I64, _I64),  # logits, rows, stride, vocab_size
        *(_F32, _I64, ctypes.c_double),  # temperature, top_k, top_p
        *(_PTR, _PTR, _PTR, _PTR, _PTR),  # seeds, positions; tokens, logprob, cut_logprob
        _I32,  # threads
    ),
    # logits, rows, columns, temperature, targets; logprob, stats; threads
    "lcpo_logprob_forward": (_PTR, _I64, _I64, _F32, _PTR, _PTR, _PTR, _I32),
    # logits, rows, columns, temperature, targets, stats, grad_logprob, grad_entropy, threads
    "lcpo_logprob_backward": (_PTR, _I64, _I64, _F32, _PTR, _PTR, _PTR, _PTR, _I32),
}


@functools.cache
def library() -> ctypes.CDLL | None:
    """The loaded library, or None when it was not built or belongs to another version."""
    return None if why_missing() else _load()


@functools.cache
def why_missing() -> str:
    """One line: why there is no usable library and how to build it; empty when there is one."""
    how = "with a C++ compiler, run `pip install -e .` in the repository to build it"
    if not PATH.exists():
        return f"the compiled library {PATH.name} is not there ({how})"
    try:
        found = _load().lcpo_abi_version()
    except OSError as error:  # another platform's file, or no OpenMP runtime
        return f"the compiled library does not load: {error} ({how})"
    if found != ABI_VERSION:
        return f"the compiled library is of interface {found}, this code of {ABI_VERSION} ({how})"
    return ""


@functools.cache
def _load() -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(PATH))
    for name, arguments in _SIGNATURES.items():
        function = getattr(loaded, name)
        function.argtypes, function.restype = arguments, None
    loaded.lcpo_abi_version.restype = _I32
    return loaded
