"""Activations that a backward pass makes again, since making them costs less than keeping them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

Again = Callable[[Tensor, Callable[[], Tensor]], AbstractContextManager[object]]


def made_again(activation: Tensor, make: Callable[[], Tensor]) -> AbstractContextManager[object]:
    """Ops of the block do not keep `activation` for their backward passes: `make` gives it to them.

    `make` returns the same bits, once for all these ops, and keeps alive what it makes them of. Not
    inside torch.utils.checkpoint, which could then not free that.
    """
    if not activation.requires_grad:
        return nullcontext()
    shared = _Shared(activation, make)
    return torch.autograd.graph.saved_tensors_hooks(shared.pack, shared.unpack)


def kept(activation: Tensor, make: Callable[[], Tensor]) -> AbstractContextManager[object]:
    """Instead of made_again: ops keep what they need."""
    return nullcontext()


class _Shared:
    def __init__(self, activation: Tensor, make: Callable[[], Tensor]) -> None:
        self._place, self._shape = activation.untyped_storage()._cdata, activation.shape
        self._make, self._made = make, None
        self._users = self._waiting = 0

    def pack(self, saved: Tensor) -> Tensor | None:
        """None for the activation, which may come back as another tensor of the same memory."""
        if saved.untyped_storage()._cdata != self._place or saved.shape != self._shape:
            return saved
        self._users += 1
        return None

    def unpack(self, saved: Tensor | None) -> Tensor:
        """The last of a backward pass's users frees it; a second pass makes it once more."""
        if saved is not None:
            return saved
        if self._made is None:
            self._made, self._waiting = self._make(), self._users
        made, self._waiting = self._made, self._waiting - 1
        if not self._waiting:
            self._made = None
        return made
