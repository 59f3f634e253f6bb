"""Which of the two scales this machine can run, and why."""

from __future__ import annotations

import torch

from trainer.config import ConfigError

PAPER_BYTES = 40e9  # device memory the 1.5B recipe needs
SCALES = ("auto", "embedded", "paper")


def resolve_scale(asked: str) -> tuple[str, str]:
    """(scale, why) for `scale=asked`. Raises ConfigError when the machine cannot run it."""
    if asked not in SCALES:
        raise ConfigError(f"scale: {asked!r} is not one of {', '.join(SCALES)}")
    found = _device()
    fits = found is not None and found[1] >= PAPER_BYTES
    seen = f"{found[0]} with {found[1] / 1e9:.0f} GB" if found else "no CUDA device"
    if asked == "paper" and not fits:
        raise ConfigError(
            f"scale: paper needs a CUDA device of at least {PAPER_BYTES / 1e9:.0f} GB, "
            f"here is {seen}; use scale=embedded"
        )
    if asked != "auto":
        return asked, "as asked"
    return ("paper" if fits else "embedded"), f"auto: {seen}"


def _device() -> tuple[str, int] | None:
    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    return properties.name, properties.total_memory
