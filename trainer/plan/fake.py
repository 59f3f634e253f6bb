"""Fake CUDA tensors where there is no GPU: the code of the GPU path runs, its kernels do not.

What runs: every line of Python of the model, the step, the rollout and the optimizer, with shape,
dtype and device of each tensor propagated, backward formulas included. What does not: kernels, so
no value is known, and code that branches on values. A CPU-only torch lacks three things, which
stand here: a device guard for CUDA (without which indexing fails, and a graph for autograd ends the
process), `torch.cuda._lazy_init`, and an autograd engine that takes CUDA tensors: `backward` walks
the graph itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

GUARD = """
#include <c10/core/impl/DeviceGuardImplInterface.h>
const c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA> guard;
const c10::impl::DeviceGuardImplRegistrar registrar(c10::DeviceType::CUDA, &guard);
"""
_TASK = 1  # id of the backward pass under way: checkpointed layers are made again once in each


@functools.cache
def why_no_cuda() -> str | None:
    """None where fake CUDA tensors work (which may take a C++ compiler), or why not."""
    if torch.backends.cuda.is_built():
        return None
    compiler = shutil.which("c++")
    if compiler is None:
        return "a CPU-only torch needs c++ to build a device guard for fake CUDA tensors"
    base = Path(torch.__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder) / "guard.cpp", Path(folder) / "guard.so"
        source.write_text(GUARD)
        paths = [f"-I{base / 'include'}", f"-L{base / 'lib'}"]
        command = [compiler, "-std=c++20", "-shared", "-fPIC", *paths, str(source)]
        ran = subprocess.run(
            [*command, "-o", str(library), "-lc10"], capture_output=True, text=True
        )
        if ran.returncode:
            return f"the device guard for fake CUDA tensors was not built: {ran.stderr[-500:]}"
        ctypes.CDLL(str(library))  # stays loaded when the file is gone
    return None


@contextlib.contextmanager
def fake_tensors(device: str) -> Iterator[FakeTensorMode]:
    """Inside, all tensors are fake, and those on `device` ("cpu" or "cuda") can be made.

    Raises RuntimeError where CUDA is asked for and cannot be had, see why_no_cuda.
    """
    with contextlib.ExitStack() as stack:
        if device == "cuda":
            if reason := why_no_cuda():
                raise RuntimeError(reason)
            if not torch.backends.cuda.is_built():
                stack.enter_context(mock.patch("torch.cuda._lazy_init"))
        yield stack.enter_context(FakeTensorMode())


@torch.no_grad()
def backward(loss: Tensor, on_leaf: Callable[[Tensor], None] = lambda leaf: None) -> None:
    """loss.backward() of a scalar made of fake tensors; `on_leaf` gets each leaf with its gradient.

    Node by node in Python, in the engine's order (the last made first), each node freed behind it
    with what it saved. The caller must hold no tensor that has a graph, or that stays.
    """
    root, device = loss.grad_fn, loss.device
    del loss
    waits = _consumers(root)
    gradients: dict[Any, list[Tensor | None]] = {root: []}
    ready = [root]
    with mock.patch("torch._C._current_graph_task_id", return_value=_TASK):
        while ready:
            node = ready.pop()
            given = gradients.pop(node)
            if node is root:
                found = _first(root, device)
                root = None
            elif hasattr(node, "variable"):
                _accumulate(node.variable, given)
                on_leaf(node.variable)
                found = ()
            else:
                found = _call(node, given)
            for (after, place), gradient in zip(node.next_functions, found, strict=False):
                if after is None:
                    continue
                slots = gradients.setdefault(after, [None] * len(after._input_metadata))
                if gradient is not None:
                    gradient = _fitted(gradient, after._input_metadata[place])
                    slots[place] = gradient if slots[place] is None else slots[place] + gradient
                waits[after] -= 1
                if waits[after] == 0:
                    del waits[after]
                    ready.append(after)
            node = after = found = given = slots = gradient = None  # a name would keep it alive


def _first(root: Any, device: torch.device) -> tuple[Tensor | None, ...]:
    """The root's gradients for an upstream gradient of 1."""
    if device.type == "cpu":  # our ops ask a real one for its value, and save a product
        with unset_fake_temporarily():
            one = torch.ones(())
            return _call(root, [one])
    return _call(root, [torch.ones((), device=device)])


def _consumers(root: Any) -> Counter[Any]:
    """How many edges lead to each node from those that come before it in the backward pass."""
    waits: Counter[Any] = Counter()
    seen, stack = {root}, [root]
    while stack:
        for after, _ in stack.pop().next_functions:
            if after is not None:
                waits[after] += 1
                if after not in seen:
                    seen.add(after)
                    stack.append(after)
    return waits


def _call(node: Any, gradients: list[Tensor | None]) -> tuple[Tensor | None, ...]:
    padded = gradients + [None] * (len(node._input_metadata) - len(gradients))
    if not isinstance(node, torch.autograd.function.BackwardCFunction):
        found = node(*padded)
        return found if isinstance(found, tuple) else (found,)
    found = node.apply(*padded)
    found = found if isinstance(found, tuple) else (found,)
    # One for each argument (and None for more), where there is an edge for tensors only.
    wanted = iter([x for x, needed in zip(found, node.needs_input_grad, strict=False) if needed])
    return tuple(next(wanted) if after is not None else None for after, _ in node.next_functions)


def _accumulate(leaf: Tensor, given: list[Tensor | None]) -> None:
    """As the engine's last node: it takes the gradient over, where it may, without a copy."""
    if leaf.grad is None:
        leaf.grad = given.pop()
    else:
        leaf.grad += given.pop()
    for hook in (leaf._post_accumulate_grad_hooks or {}).values():
        hook(leaf)


def _fitted(gradient: Tensor, meta: Any) -> Tensor:
    """What the engine makes of a gradient: summed over broadcast dimensions, in the right dtype."""
    assert gradient.device == meta.device, (gradient.device, meta.device)
    return gradient.sum_to_size(meta.shape).to(meta.dtype)
