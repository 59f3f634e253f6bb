"""AdamW on float32 weights that lie as bfloat16 numbers and 16 bits more (split_bits.py)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels import dispatch
from kernels.ops.checks import require_dtype, require_shape


def adamw_split_(
    weights: Sequence[Tensor],
    lows: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    *,
    lr: float | Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    skip: Tensor,
) -> None:
    """One step, in place, on w = join_bits(weight, low) of each weight (arXiv 1711.05101):

        m = β1 m + (1 − β1) g;  v = β2 v + (1 − β2) g²
        w = w (1 − lr λ) − lr / (1 − β1^t) · m / (√v / √(1 − β2^t) + ε)

    weights bfloat16, lows int16, grads, exp_avgs (m) and exp_avg_sqs (v) float32, one of each and
    of one shape a weight; any number of weights. All but the gradients are dense. `steps` are float
    scalars, the t of each weight: its steps with this one. `skip` is a bool scalar: when set, all
    stays as it is. `lr` may be a float scalar tensor. Tensors lie on one device, which is never
    waited for. Arithmetic is in float32 and in the order of torch.optim.AdamW(fused=True).

    Raises ValueError for other shapes or dtypes, and for in-place arguments that are not dense.
    """
    columns = (weights, lows, grads, exp_avgs, exp_avg_sqs, steps)
    if len({len(column) for column in columns}) > 1:
        raise ValueError(f"lists of {[len(column) for column in columns]} tensors, one a weight")
    require_dtype("skip", skip, torch.bool)
    require_shape("skip", skip, ())
    for row in zip(*columns, strict=True):
        _check(*row)
    if weights:
        factors = step_factors(torch.stack([*steps]), lr, beta1, beta2, weight_decay)
        _op(*map(list, columns[:-1]), factors, skip, beta1, beta2, eps)


def step_factors(
    steps: Tensor, lr: float | Tensor, beta1: float, beta2: float, weight_decay: float
) -> Tensor:
    """(1 − lr λ, −lr / (1 − β1^t), √(1 − β2^t)) for each t of `steps` [N]: float32 [N, 3]."""
    t = steps.double()  # in float32 1 − 0.999^1 would lose four digits
    decay = (1 - lr * weight_decay) * torch.ones_like(t)
    return torch.stack((decay, -lr / (1 - beta1**t), (1 - beta2**t).sqrt()), 1).float()


def _check(
    weight: Tensor, low: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, step: Tensor
) -> None:
    require_dtype("weight", weight, torch.bfloat16)
    require_dtype("low", low, torch.int16)
    require_shape("step", step, ())
    for name, x in (("grad", grad), ("exp_avg", exp_avg), ("exp_avg_sq", exp_avg_sq)):
        require_dtype(name, x, torch.float32)
        require_shape(name, x, tuple(weight.shape))
    require_shape("low", low, tuple(weight.shape))
    written = {"weight": weight, "low": low, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
    for name, x in written.items():
        if not x.is_contiguous():
            raise ValueError(f"{name} is changed in place and not dense: strides {x.stride()}")


@torch.library.custom_op(
    "lcpo::adamw_split_", mutates_args=("weights", "lows", "exp_avgs", "exp_avg_sqs")
)
def _op(
    weights: Sequence[Tensor],
    lows: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    factors: Tensor,
    skip: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
) -> None:
    run = dispatch.select("adamw_split", weights[0].device, weights[0].dtype)
    for row in zip(weights, lows, grads, exp_avgs, exp_avg_sqs, factors, strict=True):
        if row[0].numel():
            run(*row, skip, beta1, beta2, eps)


@_op.register_fake
def _(weights, lows, grads, exp_avgs, exp_avg_sqs, factors, skip, beta1, beta2, eps):
    return None
