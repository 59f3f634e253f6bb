"""Which implementation of an op runs: {op: {backend: implementation}}.

Automatic: an attention library or Triton for CUDA tensors, the compiled C++ library for CPU tensors
where it is loaded, and torch where none of them has the op. Explicit: `LCPO_BACKEND` in the
environment or `override(...)`, either one backend for all ops ("torch") or some by name
("sample_tokens=torch,count_lengths=cpp"). An explicit choice that cannot run raises and says what
can.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import logging
import os
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import cpp_impl, cuda_impl
from kernels.cpp_impl import count_lengths as cpp_count_lengths
from kernels.cpp_impl import lcpo_advantage as cpp_lcpo_advantage
from kernels.cpp_impl import linear as cpp_linear
from kernels.cpp_impl import logprob_from_logits as cpp_logprob_from_logits
from kernels.cpp_impl import logprob_rows as cpp_logprob_rows
from kernels.cpp_impl import packed_decoder as cpp_packed_decoder
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
    count_lengths,
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

_log = logging.getLogger("kernels")


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
    # float32 only in C++: in bfloat16 training has the vendor's product.
    "linear": {"torch": F.linear, "cpp": cpp_linear.linear},
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
BACKENDS = ("cuda", "triton", "cpp", "torch")  # in order of preference
# What the C++ kernels of float ops take; ops on integers have one dtype each.
CPP_FLOATS = (torch.float32, torch.bfloat16)

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
    floats = CPP_FLOATS if op != "linear" else CPP_FLOATS[:1]
    fits = dtype in floats or not dtype.is_floating_point
    if "cpp" in able and not (device_type == "cpu" and fits and cpp_impl.library()):
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
