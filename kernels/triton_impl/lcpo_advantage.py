"""LCPO rewards and group-relative advantages in one launch.

Rewards as in torch_ref.lcpo_advantage; then, in each group of n members,

    r' = r − min r;  c = r' − mean r';  std² = Σ c² / (n − 1)

in that order: taken from the group's minimum, equal rewards are zeros and their advantage exactly
0. One program a group walks all N samples (some thousands of scalars, in cache) four times: for the
minimum, the mean, the squares, and to write. So groups may have any size and order, sums have one
fixed order, and nothing is added atomically. One more program takes the samples whose group does
not exist: their advantage is NaN, since reading ids to refuse them would stall the device.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK, _WARPS = 1024, 4


def lcpo_advantage(
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
    """(correctness, length, reward, advantage), float32 [N] each; see ops.lcpo_advantage."""
    inputs = [x.contiguous() for x in (correct, n_y, n_gold, mode, group)]
    outputs = tuple(torch.empty_like(inputs[0]) for _ in range(4))
    lcpo_advantage_kernel[(num_groups + 1,)](
        *inputs,
        *outputs,
        correct.shape[0],
        num_groups,
        KIND=kind,
        alpha_exact=alpha_exact,
        alpha_max=alpha_max,
        delta=delta,
        ESTIMATOR=estimator,
        eps=eps,
        BLOCK=_BLOCK,
        num_warps=_WARPS,
    )
    return outputs


@triton.jit
def _reward(
    correct,
    n_y,
    n_gold,
    mode,
    KIND: tl.constexpr,
    alpha_exact: tl.constexpr,
    alpha_max: tl.constexpr,
    delta: tl.constexpr,
):
    slack = (n_gold - n_y).to(tl.float32)  # exact: the difference is taken in integers
    if KIND == "linear":
        exact = correct - alpha_exact * tl.abs(slack)
        share = alpha_max * slack + delta
        at_most = correct * tl.minimum(tl.maximum(share, 0.0), 1.0)
    else:
        exact = tl.sigmoid(-alpha_exact * tl.abs(slack)) + correct
        share = tl.sigmoid(alpha_max * slack) + tl.where(slack >= 0, 0.1, 0.0)
        at_most = tl.minimum(tl.maximum(share, 0.0), 1.0) + correct
    return tl.where(mode == 1, exact, tl.where(mode == 2, at_most, correct))


@triton.jit(do_not_specialize=["samples", "num_groups"])
def lcpo_advantage_kernel(
    correct,
    n_y,
    n_gold,
    mode,
    group,
    out_correct,
    out_length,
    out_reward,
    out_advantage,
    samples,
    num_groups,
    KIND: tl.constexpr,
    alpha_exact: tl.constexpr,
    alpha_max: tl.constexpr,
    delta: tl.constexpr,
    ESTIMATOR: tl.constexpr,
    eps: tl.constexpr,
    BLOCK: tl.constexpr,
):
    mine = tl.program_id(0)
    lane = tl.arange(0, BLOCK)
    low = float("inf")
    count = 0.0
    total = 0.0
    squares = 0.0
    for stage in tl.static_range(4):
        for start in range(0, samples, BLOCK):
            at = start + lane
            inside = at < samples
            owner = tl.load(group + at, mask=inside, other=0)
            stray = (owner < 0) | (owner >= num_groups)
            member = inside & tl.where(mine < num_groups, owner == mine, stray)
            right = tl.load(correct + at, mask=member, other=0.0)
            reward = _reward(
                right,
                tl.load(n_y + at, mask=member, other=0),
                tl.load(n_gold + at, mask=member, other=0),
                tl.load(mode + at, mask=member, other=0),
                KIND,
                alpha_exact,
                alpha_max,
                delta,
            )
            if stage == 0:
                low = tl.minimum(low, tl.min(tl.where(member, reward, float("inf")), 0))
                count += tl.sum(member.to(tl.float32), 0)
            elif stage == 1:
                total += tl.sum(tl.where(member, reward - low, 0.0), 0)
            else:
                centred = reward - low - tl.div_rn(total, tl.maximum(count, 1.0))
                others = tl.maximum(count - 1.0, 1.0)  # a group of one has centred = 0
                if stage == 2:
                    squares += tl.sum(tl.where(member, centred * centred, 0.0), 0)
                else:
                    if ESTIMATOR == "dr_grpo":
                        advantage = centred
                    elif ESTIMATOR == "rloo":
                        advantage = tl.div_rn(centred * count, others)
                    else:
                        std = tl.sqrt_rn(tl.div_rn(squares, others))
                        advantage = tl.div_rn(centred, std + eps)
                    advantage = tl.where(mine < num_groups, advantage, float("nan"))
                    tl.store(out_correct + at, right, mask=member)
                    tl.store(out_length + at, reward - right, mask=member)
                    tl.store(out_reward + at, reward, mask=member)
                    tl.store(out_advantage + at, advantage, mask=member)
