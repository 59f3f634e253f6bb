"""What a bench file states: the shapes of an op, its inputs, and who is compared on them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

TRAFFIC = "the memory traffic alone"


@dataclass(frozen=True)
class Absent:
    """A contender that cannot run here, and why; it is listed, not forgotten."""

    why: str


Contender = Callable[..., Any] | Absent


@dataclass(frozen=True)
class Case:
    """One shape of an op with its inputs made.

    Gradients are taken by all inputs that require one; with none of them only "fwd" is measured.
    `work` is (FLOPs, bytes read and written) that the forward pass needs at least, and the
    backward pass; `gemm` is the [m, k] x [k, n] whose rate is the arithmetic ceiling.
    """

    inputs: Sequence[Tensor]
    contenders: dict[str, Contender]  # ours first
    work: tuple[tuple[float, float], ...]
    gemm: tuple[int, int, int] = (1024, 1024, 1024)

    def able(self) -> dict[str, Contender]:
        """The contenders that run here."""
        return {n: f for n, f in self.contenders.items() if not isinstance(f, Absent)}


@dataclass(frozen=True)
class Bench:
    """An op's bench. `make(shape, dtype, device)` gives the Case; shapes are what it unpacks."""

    op: str
    make: Callable[[tuple[int, ...], torch.dtype, torch.device], Case]
    labels: str  # names of the sizes, as "T H V"
    shapes: Sequence[tuple[int, ...]]
    quick: Sequence[tuple[int, ...]]
    gpu: Sequence[tuple[int, ...]]  # the paper's
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.bfloat16)
    gpu_dtypes: Sequence[torch.dtype] = (torch.bfloat16,)

    def name(self, shape: tuple[int, ...]) -> str:
        """The shape as it is written in results: "T2048 H576"."""
        return " ".join(f"{k}{v}" for k, v in zip(self.labels.split(), shape, strict=True))


def imported(path: str, adapt: Callable[..., Contender], *, on: bool = True) -> Contender:
    """`adapt(function)` for the function `package.module:name`; Absent when that is not installed.

    So is what does not run `on` this device.
    """
    module, name = path.split(":")
    if not on:
        return Absent("needs CUDA")
    try:
        return adapt(getattr(importlib.import_module(module), name))
    except (ImportError, AttributeError) as error:
        return Absent(str(error))


def traffic(forward: Callable[..., Any], backward: Callable[..., Any]) -> Contender:
    """A contender that moves as many bytes as the op must, through torch, and computes nothing.

    What it takes beyond the floor is what fresh memory costs: pages that the system hands out and
    clears. `forward(*inputs)` gives the outputs, `backward(*upstream, *inputs)` the gradients, one
    an input.
    """

    class Traffic(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Tensor) -> Any:
            ctx.save_for_backward(*inputs)
            return forward(*inputs)

        @staticmethod
        def backward(ctx: Any, *upstream: Tensor) -> Any:
            return backward(*upstream, *ctx.saved_tensors)

    return Traffic.apply


def warm_up(function: Callable[..., Any], inputs: Sequence[Tensor]) -> list[Tensor]:
    """Runs both passes once; returns upstream gradients for the outputs that want one.

    Random ones, but 1 for a scalar: a loss, as `loss.backward()` has it.
    """
    generator = torch.Generator(inputs[0].device).manual_seed(0)
    outputs = differentiable(function(*inputs))
    upstream = [
        torch.randn(o.shape, generator=generator, device=o.device).to(o.dtype)
        if o.ndim
        else torch.ones_like(o)
        for o in outputs
    ]
    backward(outputs, inputs, upstream)
    return upstream


def differentiable(outputs: Any) -> list[Tensor]:
    """Those of the outputs of a call that have a gradient."""
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return [o for o in outputs if isinstance(o, Tensor) and o.requires_grad]


def backward(
    outputs: list[Tensor], inputs: Sequence[Tensor], upstream: list[Tensor]
) -> Sequence[Tensor | None]:
    """Gradients by the inputs that require one; none when no output has a gradient."""
    leaves = [x for x in inputs if x.requires_grad]
    if not outputs:
        return ()
    return torch.autograd.grad(outputs, leaves, upstream, allow_unused=True)
