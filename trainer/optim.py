"""AdamW on float32 masters: clip, check, skip or step, and the learning-rate schedule."""

from __future__ import annotations

import math

import torch

from trainer.config import OptimSettings


class Optimizer:
    """`step()` ends an optimizer step: after the last micro-batch's backward pass.

    A non-finite gradient norm skips it: parameters, moments and schedule stay as they are, and so
    many skips in a row as `max_skips` raise FloatingPointError.
    """

    def __init__(self, model: torch.nn.Module, settings: OptimSettings) -> None:
        self.settings = settings
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        self.names = [n for n, _ in named]
        self.parameters = [p for _, p in named]
        self.adamw = torch.optim.AdamW(
            self.parameters,
            lr=settings.lr,
            betas=(settings.beta1, settings.beta2),
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.updates = 0  # optimizer steps taken
        self.skipped = 0  # optimizer steps skipped, in all
        self.skips_in_row = 0
        self.last_norm = 0.0  # of the gradient, before clipping

    @property
    def lr(self) -> float:
        """Learning rate of the next step: linear warm-up, then constant."""
        warmup = self.settings.warmup_steps
        return self.settings.lr * min(1.0, (self.updates + 1) / max(1, warmup))

    def step(self) -> None:
        """Clip, then step, or skip when the norm is not finite. Gradients are freed either way."""
        self.last_norm = float(
            torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.grad_clip)
        )
        if math.isfinite(self.last_norm):
            for group in self.adamw.param_groups:
                group["lr"] = self.lr
            self.adamw.step()
            self.updates, self.skips_in_row = self.updates + 1, 0
        else:
            self.skipped, self.skips_in_row = self.skipped + 1, self.skips_in_row + 1
        self.adamw.zero_grad(set_to_none=True)
        if self.skips_in_row >= self.settings.max_skips:
            raise FloatingPointError(
                f"{self.skips_in_row} optimizer steps in a row had a gradient norm of "
                f"{self.last_norm} (optim.max_skips): stopped before saving"
            )
