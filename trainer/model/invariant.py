"""`rollout.batch_invariant`: a row's result does not depend on how many rows there are.

A vendor GEMM picks its inner loops by the number of rows, so the last bit of a token's activations
may differ between decoding (a row a sequence), prefill and training. Here linear layers are the
product of the packed decoder, which rollouts use anyway. Everything else in the compiled library
never depended on it: rollout and trainer agree bit for bit in float32 on the CPU.
"""

from __future__ import annotations

from torch import Tensor, nn

import kernels
from trainer.model.decoder import Decoder


def make_batch_invariant(model: Decoder) -> None:
    """Computes all linear layers of `model` by kernels.linear; parameters and names stay."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.__class__ = InvariantLinear


class InvariantLinear(nn.Linear):
    """nn.Linear by kernels.linear; float32, no autocast."""

    def forward(self, x: Tensor) -> Tensor:
        """[T, in] to [T, out]."""
        return kernels.linear(x, self.weight, self.bias)
