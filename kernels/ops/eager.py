"""Ops that cost little to call: custom ops for whoever traces, plain functions for everyone else.

A call of a `torch.library.custom_op` takes 10 µs of Python, and 30 µs more with gradients: more
than a small model's whole norm in plain torch. Nothing needs it in eager mode, where
`torch.autograd.Function` runs the same three functions for a fifth of that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class EagerOp:
    """A custom op `op`, called as such only under torch.compile, fake tensors and their like."""

    def __init__(self, name: str, run: Callable[..., Any]) -> None:
        self.op = torch.library.custom_op(name, run, mutates_args=())
        self.run = run
        self.apply: Callable[..., Any] = run  # with gradients, where there is a formula for them

    def register_fake(self, fake: Callable[..., Any]) -> Callable[..., Any]:
        """See CustomOpDef.register_fake."""
        return self.op.register_fake(fake)

    def register_autograd(
        self, backward: Callable[..., Any], *, setup_context: Callable[..., None]
    ) -> None:
        """See CustomOpDef.register_autograd."""
        self.op.register_autograd(backward, setup_context=setup_context)
        run = self.run

        def forward(ctx, *arguments):
            outputs = run(*arguments)
            setup_context(ctx, arguments, outputs)
            return outputs

        # Not Function's own setup_context: with one, each call binds a signature, 20 µs long.
        members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
        self.apply = type(run.__name__, (torch.autograd.Function,), members).apply

    def __call__(self, *arguments: Any) -> Any:
        """The outputs of the op."""
        if torch.compiler.is_compiling() or _traced(arguments):
            return self.op(*arguments)
        return (self.apply if torch.is_grad_enabled() else self.run)(*arguments)


def eager_op(name: str) -> Callable[[Callable[..., Any]], EagerOp]:
    """A decorator in the place of torch.library.custom_op; the schema is that of the function."""
    return lambda run: EagerOp(name, run)


def _traced(arguments: tuple[Any, ...]) -> bool:
    """Whether a mode (make_fx, a FLOP counter) or a kind of tensor has to see the op itself."""
    if torch._C._len_torch_dispatch_stack() > 0:
        return True
    return any(isinstance(x, Tensor) and type(x) not in _PLAIN for x in arguments)


_PLAIN = (Tensor, torch.nn.Parameter)
