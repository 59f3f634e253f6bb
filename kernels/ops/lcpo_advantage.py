"""LCPO rewards and group-relative advantages."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from kernels import dispatch
from kernels.ops.checks import require_dtype, require_range, require_shape

ESTIMATORS = ("grpo", "dr_grpo", "rloo")
KINDS = ("linear", "sigmoid")


@dataclass(frozen=True)
class RewardSpec:
    """Parameters of the LCPO reward (arXiv 2503.04697, eq. 1 and 2, and its public code).

    linear:  exact  correct − α_exact · |n_gold − n_y|
             max    correct · clip(α_max · (n_gold − n_y) + δ, 0, 1)
    sigmoid: exact  σ(−α_exact · |n_gold − n_y|) + correct
             max    clip(σ(α_max · (n_gold − n_y)) + 0.1 · [n_y <= n_gold], 0, 1) + correct
    """

    kind: str  # "linear" | "sigmoid"
    alpha_exact: float  # per token
    alpha_max: float  # per token
    delta: float  # reward of a right answer exactly at its budget, before the clip, linear max

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown reward kind {self.kind!r}; there are {KINDS}")
        for name in ("alpha_exact", "alpha_max", "delta"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"reward {name} must be finite, got {getattr(self, name)}")


class RewardTerms(NamedTuple):
    """float32 [N] each; correctness + length = reward."""

    correctness: Tensor
    length: Tensor
    reward: Tensor
    advantage: Tensor


def lcpo_advantage(
    correct: Tensor,
    n_y: Tensor,
    n_gold: Tensor,
    mode: Tensor,
    group: Tensor,
    num_groups: int,
    *,
    reward: RewardSpec,
    estimator: str = "grpo",
    eps: float = 1e-6,
) -> RewardTerms:
    """Rewards of N samples and their advantages within their groups.

    correct float32 [N] (1 right, 0 wrong); n_y, n_gold int32 [N], tokens written and asked for;
    mode int32 [N]: 0 none (the reward is `correct`), 1 exact, 2 max; group int32 [N] in
    [0, num_groups), of any sizes and in any order.

    grpo: (r − mean) / (std + eps) with the unbiased std (arXiv 2402.03300); dr_grpo: r − mean
    (arXiv 2503.20783); rloo: r − mean of the others (arXiv 2402.14740). A group of one, and a
    group of equal rewards, has advantage 0 exactly.
    Raises ValueError for wrong shapes, dtypes or estimator and, on the CPU, for values outside
    their ranges or not finite.
    """
    size = (correct.shape[0],)
    for name, tensor in (("n_y", n_y), ("n_gold", n_gold), ("mode", mode), ("group", group)):
        require_shape(name, tensor, size)
        require_dtype(name, tensor, torch.int32)
    require_shape("correct", correct, size)
    require_dtype("correct", correct, torch.float32)
    if estimator not in ESTIMATORS:
        raise ValueError(f"unknown advantage estimator {estimator!r}; there are {ESTIMATORS}")
    terms = _op(
        correct,
        n_y,
        n_gold,
        mode,
        group,
        num_groups,
        reward.kind,
        float(reward.alpha_exact),
        float(reward.alpha_max),
        float(reward.delta),
        estimator,
        float(eps),
    )
    return RewardTerms(*terms)


@torch.library.custom_op("lcpo::lcpo_advantage", mutates_args=())
def _op(
    correct: Tensor,
    n_y: Tensor,
    n_gold: Tensor,
    mode: Tensor,
    group: Tensor,
    num_groups: int,
    kind: str,
    alpha_exact: float,
    alpha_max: float,
    delta: float,
    estimator: str,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    require_range("mode", mode, 0, 3)
    require_range("group", group, 0, num_groups)
    if correct.device.type == "cpu" and not bool(correct.isfinite().all()):
        raise ValueError(f"correct holds {correct[~correct.isfinite()][0].item()}")
    run = dispatch.select("lcpo_advantage", correct.device, correct.dtype)
    return run(
        correct,
        n_y,
        n_gold,
        mode,
        group,
        num_groups,
        kind,
        alpha_exact,
        alpha_max,
        delta,
        estimator,
        eps,
    )


@_op.register_fake
def _(correct, *rest):
    return tuple(torch.empty_like(correct) for _ in range(4))
