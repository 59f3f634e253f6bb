"""Log-probability and entropy of rows of logits, and the gradient by them.

    m = max x;  z = (x − m) / T;  s = Σ e^z;  E = Σ e^z z / s
    logprob = z_target − log s;  entropy = log s − E;  stats = m, log s, E
    dx_j = [g_logp (δ_j − p_j) + g_ent p_j (E − z_j)] / T

Forward: one program a row, one pass. Each tile is folded into a running max, kept once for the row,
and into sums kept for each lane, so that a tile costs one reduction (its max) and one exponential
an entry. The target's logit is one more scalar load. Backward: a program for each tile of each row,
since with the statistics at hand every entry stands alone; it may rewrite the logits in place,
because each entry is read and written by the same program and the target's δ is added in passing.
Both are bound by memory: full tiles go without a mask so that their loads are 128 bits wide
whatever the vocabulary's size, and only the last one is masked.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton_impl.common import LOWEST, row_offset, unit_columns

_BLOCK, _WARPS = 4096, 8  # 16 entries a thread: two to four 128-bit loads in flight


def logprob_rows(logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """See torch_ref.linear_logprob.logprob_rows; logits float32 or bfloat16 [b, V]."""
    return _statistics(logits, targets, temperature, logits.shape[1])


def logprob_rows_backward(
    logits: Tensor,
    targets: Tensor,
    stats: Tensor,
    grad_logprob: Tensor | None,
    grad_entropy: Tensor | None,
    temperature: float,
) -> None:
    """See torch_ref.linear_logprob.logprob_rows_backward; logits [b, V], columns dense."""
    grads = (grad_logprob, grad_entropy)
    _gradient(logits, logits, targets, stats, *grads, temperature, logits.shape[1])


def logprob_from_logits(
    logits: Tensor, targets: Tensor, temperature: float, vocab_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(logprob, entropy, float32 [R]; stats float32 [R, 3]); see ops.logprob_from_logits."""
    logprob, stats = _statistics(unit_columns(logits), targets, temperature, vocab_size)
    return logprob, stats[:, 1] - stats[:, 2], stats


def logprob_from_logits_backward(
    grad_logprob: Tensor | None,
    grad_entropy: Tensor | None,
    logits: Tensor,
    targets: Tensor,
    stats: Tensor,
    temperature: float,
    vocab_size: int,
) -> Tensor:
    """d_logits [R, V] in the dtype of logits; columns from vocab_size on are 0."""
    out = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    grads = (grad_logprob, grad_entropy)
    _gradient(unit_columns(logits), out, targets, stats, *grads, temperature, vocab_size)
    return out


def _statistics(
    logits: Tensor, targets: Tensor, temperature: float, vocab_size: int
) -> tuple[Tensor, Tensor]:
    rows = logits.shape[0]
    logprob = torch.empty(rows, dtype=torch.float32, device=logits.device)
    stats = torch.empty(rows, 3, dtype=torch.float32, device=logits.device)
    logprob_forward_kernel[(rows,)](
        logits,
        logits.stride(0),
        targets.contiguous(),
        logprob,
        stats,
        vocab_size,
        scale=1 / temperature,
        BLOCK=_BLOCK,
        num_warps=_WARPS,
    )
    return logprob, stats


def _gradient(
    logits: Tensor,
    out: Tensor,
    targets: Tensor,
    stats: Tensor,
    grad_logprob: Tensor | None,
    grad_entropy: Tensor | None,
    temperature: float,
    vocab_size: int,
) -> None:
    rows, columns = out.shape
    logprob_backward_kernel[(rows, triton.cdiv(columns, _BLOCK))](
        logits,
        logits.stride(0),
        out,
        out.stride(0),
        targets.contiguous(),
        stats.contiguous(),
        *(g if g is None else g.contiguous() for g in (grad_logprob, grad_entropy)),
        vocab_size,
        columns,
        scale=1 / temperature,
        BLOCK=_BLOCK,
        num_warps=_WARPS,
    )


@triton.jit
def _tempered(x, m, scale: tl.constexpr):
    """(x − m) · scale; far below any exponent instead of −inf, so that 0 · z is 0."""
    z = (x - m) * scale
    return tl.where(z < LOWEST, LOWEST, z)  # not a maximum, which would drop NaN


@triton.jit
def _fold(x, scale: tl.constexpr, m, s, w):
    """The running max of the row and each lane's sums, after one more tile x of float32 logits."""
    top = tl.maximum(m, tl.max(x, 0))
    safe = tl.where(top == float("-inf"), 0.0, top)  # nothing but -inf so far: -inf − -inf is NaN
    moved = tl.where(m == float("-inf"), 0.0, m - safe) * scale
    keep = tl.exp(moved)
    z = _tempered(x, safe, scale)
    e = tl.exp(z)
    return top, s * keep + e, (w + s * moved) * keep + e * z


@triton.jit
def logprob_forward_kernel(
    logits, stride, targets, logprob, stats, vocab_size, scale: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0)
    logits += row_offset(row, stride)
    lane = tl.arange(0, BLOCK)
    m = float("-inf")
    s = tl.zeros((BLOCK,), tl.float32)
    w = tl.zeros((BLOCK,), tl.float32)
    whole = vocab_size // BLOCK * BLOCK
    for start in range(0, whole, BLOCK):
        x = tl.load(logits + start + lane).to(tl.float32)
        m, s, w = _fold(x, scale, m, s, w)
    if whole < vocab_size:
        column = whole + lane
        x = tl.load(logits + column, mask=column < vocab_size, other=float("-inf"))
        m, s, w = _fold(x.to(tl.float32), scale, m, s, w)
    total = tl.sum(s, 0)
    log_total = tl.log(total)
    target = tl.load(logits + tl.load(targets + row)).to(tl.float32)
    tl.store(logprob + row, _tempered(target, m, scale) - log_total)
    tl.store(stats + row * 3, m)
    tl.store(stats + row * 3 + 1, log_total)
    tl.store(stats + row * 3 + 2, tl.sum(w, 0) / total)


@triton.jit
def _slope(x, is_target, m, log_total, mean, g_logprob, g_entropy, scale: tl.constexpr):
    """d/dx of g_logprob · logprob + g_entropy · entropy."""
    z = _tempered(x, m, scale)
    p = tl.exp(z - log_total)
    dz = p * (g_entropy * (mean - z) - g_logprob)
    return (dz + tl.where(is_target, g_logprob, 0.0)) * scale


@triton.jit
def logprob_backward_kernel(
    logits,
    stride,
    out,
    out_stride,
    targets,
    stats,
    grad_logprob,
    grad_entropy,
    vocab_size,
    columns,
    scale: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0)
    start = tl.program_id(1) * BLOCK
    logits += row_offset(row, stride)
    out += row_offset(row, out_stride)
    column = start + tl.arange(0, BLOCK)
    is_target = column == tl.load(targets + row)
    m = tl.load(stats + row * 3)
    log_total = tl.load(stats + row * 3 + 1)
    mean = tl.load(stats + row * 3 + 2)
    g_logprob = 0.0
    g_entropy = 0.0
    if grad_logprob is not None:
        g_logprob = tl.load(grad_logprob + row)
    if grad_entropy is not None:
        g_entropy = tl.load(grad_entropy + row)
    if start + BLOCK <= vocab_size:
        x = tl.load(logits + column).to(tl.float32)
        dx = _slope(x, is_target, m, log_total, mean, g_logprob, g_entropy, scale)
        tl.store(out + column, dx)
    else:
        inside = column < vocab_size
        x = tl.load(logits + column, mask=inside, other=float("-inf")).to(tl.float32)
        dx = _slope(x, is_target, m, log_total, mean, g_logprob, g_entropy, scale)
        tl.store(out + column, tl.where(inside, dx, 0.0), mask=column < columns)
