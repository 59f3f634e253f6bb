"""AdamW for float32 masters that lie as their bfloat16 copy and the 16 bits that this lacks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

import kernels


class SplitAdamW(torch.optim.AdamW):
    """torch.optim.AdamW(fused=True) on pairs: a master, and its copy that computes.

    A weight is kernels.join_bits of the copy's and of `low`: 4 bytes in all. The masters keep what
    they are called, their shapes and their gradients; their memory is given back, and whoever reads
    them finds NaN. State and settings are those of torch's, so are the bits of the arithmetic's
    order; `found_inf`, as there, is a tensor that skips the step where it is not 0.
    """

    found_inf: Tensor

    def __init__(
        self, masters: Mapping[str, Tensor], copies: Mapping[str, Tensor], **settings: Any
    ) -> None:
        super().__init__(masters.values(), **settings, fused=True)
        self.copies = {name: copies[name].detach() for name in masters}
        self.low = {n: torch.empty_like(x, dtype=torch.int16) for n, x in self.copies.items()}
        self._masters = dict(masters)
        self.fill(masters)
        for master in masters.values():
            master.data = master.data.new_full((), torch.nan).expand(master.shape)

    @torch.no_grad()
    def fill(self, weights: Mapping[str, Tensor]) -> None:
        """Sets the weights, by name, and with them the copies."""
        for name, copy in self.copies.items():
            high, low = kernels.split_bits(weights[name])
            copy.copy_(high)
            self.low[name].copy_(low)

    def joined(self) -> dict[str, Tensor]:
        """The weights in float32, by name, in memory of their own."""
        return {name: kernels.join_bits(x, self.low[name]) for name, x in self.copies.items()}

    @torch.no_grad()
    def step(self) -> None:
        """One step of the weights that have a gradient, and of their copies."""
        (group,) = self.param_groups
        stepped = {name: p for name, p in self._masters.items() if p.grad is not None}
        for master in stepped.values():
            if not self.state[master]:
                self.state[master] = {
                    "step": torch.zeros((), device=master.device),
                    "exp_avg": torch.zeros_like(master),
                    "exp_avg_sq": torch.zeros_like(master),
                }
        states = [self.state[master] for master in stepped.values()]
        skip = self.found_inf.bool()
        if states:
            taken = (~skip).float()
            torch._foreach_add_([state["step"] for state in states], [taken] * len(states))
        kernels.adamw_split_(
            [self.copies[name] for name in stepped],
            [self.low[name] for name in stepped],
            [master.grad for master in stepped.values()],
            *([s[key] for s in states] for key in ("exp_avg", "exp_avg_sq", "step")),
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            skip=skip,
        )
