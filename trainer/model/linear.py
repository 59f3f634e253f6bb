"""Linear layers whose rows do not depend on each other, where the compiled library has them."""

from __future__ import annotations

from torch import Tensor, nn

import kernels


class Linear(nn.Linear):
    """nn.Linear by kernels.linear.

    In float32 on the CPU a token then has the same bits in training as in a rollout, which computes
    other tokens beside it: see docs/rollout.md.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[T, in] to [T, out]."""
        return kernels.linear(x, self.weight, self.bias)
