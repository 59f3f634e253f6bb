"""Which implementation of an op runs, of those in implementations.py.

Automatic: an attention library or Triton for CUDA tensors, the compiled C++ library for CPU tensors
where it is loaded, and torch where none of them has the op. Explicit: `LCPO_BACKEND` in the
environment or `override(...)`, either one backend for all ops ("torch") or some by name
("sample_tokens=torch,count_lengths=cpp"). An explicit choice that cannot run raises and says what
can.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import logging
import os
from collections.abc import Callable, Iterator
from functools import partial

import torch

from kernels import cpp_impl, cuda_impl
from kernels.cpp_impl import half_layers as cpp_half_layers
from kernels.cpp_impl import packed_decoder as cpp_packed_decoder
from kernels.cpp_impl import product as cpp_product
from kernels.implementations import HALF_LAYERS, IMPLEMENTATIONS
from kernels.torch_ref import linear_logprob

_log = logging.getLogger("kernels")

BACKENDS = ("cuda", "triton", "cpp", "torch")  # in order of preference
# What the C++ kernels of float ops take; ops on integers have one dtype each.
CPP_FLOATS = (torch.float32, torch.bfloat16)
CPP_FLOATS_OF = {"linear": (torch.float32,)}  # where they are fewer
CPP_FLOATS_OF |= dict.fromkeys(HALF_LAYERS, (torch.bfloat16,))

# A list and not a ContextVar: autograd's device threads, where backward passes run, would not
# inherit a context.
_overrides: list[dict[str, str]] = []


def select(op: str, device: torch.device, dtype: torch.dtype) -> Callable:
    """The implementation of `op` for tensors of this device and dtype.

    Raises ValueError when an explicit choice cannot run here, naming the backends that can.
    """
    for chosen in reversed(_overrides):
        backend = chosen.get(op, chosen.get("*"))
        if backend is not None:
            able = _able(op, device.type, dtype)
            if backend not in able:
                raise ValueError(
                    f"backend {backend!r} cannot run {op} on {device.type} with {dtype}; "
                    f"it can run on: {', '.join(able)}"
                )
            return IMPLEMENTATIONS[op][backend]
    backends = IMPLEMENTATIONS[op]
    if len(backends) == 1:  # nothing to choose, and nothing that torch.compile could not trace
        return backends["torch"]
    return backends[_automatic(op, device.type, dtype)]


def packed_decoder(device: torch.device, dtype: torch.dtype) -> Callable | None:
    """A whole decoder in C++, where each of its parts would run there; else None: run the parts."""
    runs = device.type == "cpu" and cpp_impl.library() and cpp_product.fits(dtype)
    parts = ("rms_norm", "rope", "varlen_attention", "paged_decode_attention", "swiglu")
    chosen = ((op, select(op, device, dtype)) for op in (*parts, "sample_tokens"))
    ours = runs and all(run is IMPLEMENTATIONS[op]["cpp"] for op, run in chosen)
    if not ours:
        return None
    _, columns = linear_logprob.TILE["cpu"]
    return partial(cpp_packed_decoder.PackedDecoder, head_columns=columns)


@contextlib.contextmanager
def override(choice: str) -> Iterator[None]:
    """Run the ops inside the block on the chosen backend: "torch" or "op=backend,op=backend"."""
    _overrides.append(parse_choice(choice))
    try:
        yield
    finally:
        _overrides.pop()


def parse_choice(choice: str) -> dict[str, str]:
    """{op or "*": backend} of a choice (see the module); ValueError for unknown names."""
    parsed = {}
    for part in choice.split(","):
        op, _, backend = part.strip().rpartition("=")
        op = op or "*"
        if op != "*" and op not in IMPLEMENTATIONS:
            raise ValueError(
                f"unknown op {op!r} in backend choice {choice!r}; there are {[*IMPLEMENTATIONS]}"
            )
        if backend not in BACKENDS:
            raise ValueError(
                f"unknown backend {backend!r} in choice {choice!r}; there are {BACKENDS}"
            )
        parsed[op] = backend
    return parsed


def active_backends(
    device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> dict[str, str]:
    """{op: backend} that calls with such tensors would take now; for a run's manifest."""
    device = torch.device(device)
    found = {}
    for op, backends in IMPLEMENTATIONS.items():
        chosen = select(op, device, dtype)
        found[op] = next(name for name, run in backends.items() if run is chosen)
    return found


def _able(op: str, device_type: str, dtype: torch.dtype) -> list[str]:
    """Backends that can run `op` on such tensors, the preferred one first."""
    able = [name for name in BACKENDS if name in IMPLEMENTATIONS[op]]
    if "cuda" in able and not (
        device_type == "cuda" and (op != "paged_decode_attention" or cuda_impl.flash_attn())
    ):
        able.remove("cuda")
    # Triton's kernels compute in float32; float64, which is for gradient checks, goes to torch.
    if "triton" in able and not (_triton_runs(device_type) and dtype != torch.float64):
        able.remove("triton")
    fits = dtype in CPP_FLOATS_OF.get(op, CPP_FLOATS) or not dtype.is_floating_point
    runs = device_type == "cpu" and fits and cpp_impl.library()
    if op in HALF_LAYERS:
        runs = runs and cpp_half_layers.supported()
    if "cpp" in able and not runs:
        able.remove("cpp")
    return able


@functools.cache
def _triton_runs(device_type: str) -> bool:
    """On CUDA; in Triton's interpreter on the CPU, which is how it is tested without a GPU."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    return (device_type == "cuda" or interpreted) and importlib.util.find_spec("triton") is not None


@functools.cache
def _automatic(op: str, device_type: str, dtype: torch.dtype) -> str:
    """The preferred backend; cached, so a missing library is looked for and told of once."""
    if device_type == "cpu":
        _tell_if_missing()
    return _able(op, device_type, dtype)[0]


@functools.cache
def _tell_if_missing() -> None:
    if cpp_impl.library() is None:
        _log.warning("%s; CPU ops use the torch backend", cpp_impl.why_missing())


if os.environ.get("LCPO_BACKEND"):
    _overrides.append(parse_choice(os.environ["LCPO_BACKEND"]))
