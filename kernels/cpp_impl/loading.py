"""Finds and loads the compiled library (csrc/api.h is its interface)."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

PATH = Path(__file__).with_name("liblcpo_kernels.so")
ABI_VERSION = 8  # of csrc/api.h; raise both when a signature changes

BOOL, I32, I64, F32, F64, PTR = (
    ctypes.c_bool,
    ctypes.c_int32,
    ctypes.c_int64,
    ctypes.c_float,
    ctypes.c_double,
    ctypes.c_void_p,
)


def bind(name: str, *arguments: type, returns: type | None = None) -> Callable[..., Any]:
    """The C function `name`, looked up at its first call; each op's file declares its own."""

    @functools.cache
    def function() -> Callable[..., Any]:
        found = getattr(library(), name)
        found.argtypes, found.restype = arguments, returns
        return found

    return lambda *values: function()(*values)


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
    loaded.lcpo_abi_version.restype = I32
    return loaded
