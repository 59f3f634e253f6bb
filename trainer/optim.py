"""AdamW on float32 masters: clip, check, skip or step, and the learning-rate schedule."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from trainer.config import OptimSettings
from trainer.model import Decoder
from trainer.shards import fill, whole
from trainer.split_adamw import SplitAdamW
from trainer.world import ALONE, World


class Optimizer:
    """`step()` ends an optimizer step: after the last micro-batch's backward pass.

    A non-finite gradient norm skips it: parameters, moments and schedule stay as they are. Whether
    it is finite is decided on the device, and counted there: nothing waits for it until someone
    reads a count. `working` is the masters' copy in bfloat16 that computes (model/precision.py), if
    there is one; it follows them, and is the upper half of them (split_adamw.py), unless the
    parameters are `divided` (shards.py), as the copy is not. Of several ranks each has the gradient
    of its own micro-batches: they are summed first, but those of divided parameters come summed. So
    all ranks see one norm, and step or skip alike.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        settings: OptimSettings,
        working: torch.nn.Module | None = None,
        world: World = ALONE,
        *,
        divided: bool = False,
    ) -> None:
        self.settings, self.world, self.divided = settings, world, divided
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        self.names = [n for n, _ in named]
        self.parameters = [p for _, p in named]
        self.model, self.working = model, working
        order = {
            "lr": settings.lr,
            "betas": (settings.beta1, settings.beta2),
            "eps": settings.eps,
            "weight_decay": settings.weight_decay,
        }
        if working is None or working is model or divided:
            self.adamw = torch.optim.AdamW(self.parameters, **order, fused=True)
            self._refresh()
        else:
            self.adamw = SplitAdamW(dict(named), dict(working.named_parameters()), **order)
        self.restore(updates=0, skipped=0, skips_in_row=0)
        self._norm = torch.zeros(())

    def restore(self, *, updates: int, skipped: int, skips_in_row: int) -> None:
        """Sets the counts: after a checkpoint."""
        counts = (updates, skipped, skips_in_row, skips_in_row)
        device = self.parameters[0].device
        self._updates, self._skipped, self._in_row, self._most_in_row = (
            torch.tensor(n, dtype=torch.int64, device=device) for n in counts
        )

    def fill(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Sets the weights, whole and by name, and the working copy to them."""
        if isinstance(self.adamw, SplitAdamW):
            self.adamw.fill(weights)
        else:
            fill(self.model, weights)
            self._refresh()

    def masters(self) -> Decoder:
        """The weights in float32: the model itself, or a new one where they lie split."""
        if not isinstance(self.adamw, SplitAdamW):
            return self.model
        joined = Decoder(self.model.config, device="meta")
        joined.load_state_dict(self.adamw.joined(), assign=True)
        return joined

    @property
    def updates(self) -> int:
        """Optimizer steps taken."""
        return int(self._updates)

    @property
    def skipped(self) -> int:
        """Optimizer steps skipped, in all."""
        return int(self._skipped)

    @property
    def skips_in_row(self) -> int:
        """Optimizer steps skipped since the last one taken."""
        return int(self._in_row)

    @property
    def last_norm(self) -> float:
        """Of the gradient, before clipping."""
        return float(self._norm)

    @property
    def lr(self) -> float:
        """Learning rate of the next step: linear warm-up, times 2^(-updates / half_life)."""
        return float(self._rate())

    def step(self) -> torch.Tensor:
        """Clip, then step, or skip when the norm is not finite: bool scalar, True when skipped.

        Gradients are freed either way.
        """
        if not self.divided:
            self.world.meet(p.grad for p in self.parameters if p.grad is not None)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.grad_clip)
        self._norm = whole(norm)
        skip = ~self._norm.isfinite().to(self._updates.device)
        for group in self.adamw.param_groups:
            group["lr"] = self._rate()
        self.adamw.found_inf = skip.float()  # 1: the fused kernel leaves all as it is
        self.adamw.step()
        self._updates = self._updates + ~skip
        self._skipped = self._skipped + skip
        self._in_row = (self._in_row + 1) * skip
        self._most_in_row = self._most_in_row.maximum(self._in_row)
        self.adamw.zero_grad(set_to_none=True)
        self._refresh()
        return skip

    def check(self, samples: str) -> None:
        """FloatingPointError when `max_skips` steps in a row were skipped; waits for the device.

        `samples` names those of the steps skipped last.
        """
        if int(self._most_in_row) >= self.settings.max_skips:
            raise FloatingPointError(
                f"{int(self._most_in_row)} optimizer steps in a row had a gradient norm that is "
                f"not finite, the last one {self.last_norm} (optim.max_skips): stopped before "
                f"saving; rollouts {samples}"
            )

    def _rate(self) -> torch.Tensor:
        warmed = (self._updates.double() + 1) / max(1, self.settings.warmup_steps)
        rate = self.settings.lr * warmed.clamp(max=1)
        if self.settings.half_life:
            rate = rate * 0.5 ** (self._updates.double() / self.settings.half_life)
        return rate if rate.device.type == "cpu" else rate.float()  # what CUDA's kernel reads

    @torch.no_grad()
    def _refresh(self) -> None:
        """The whole copy of divided masters: one by one, each gathered on every rank."""
        if self.divided:
            pairs = zip(self.working.parameters(), self.model.parameters(), strict=True)
            for copy, part in pairs:
                copy.copy_(whole(part.to(copy.dtype)))
