"""Log-probability and entropy of a target under a linear head, without the [R, V] logits.

The vendor GEMM fills one workspace of `chunk_tokens` rows; the row statistics then walk it in
blocks small enough to stay in cache, because they are bound by memory and not by arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

# Bytes of float32 logits in one block of rows. On the CPU the four passes over a block should find
# it in cache; on an accelerator a block should be large enough to hide the launches.
_BLOCK_BYTES = {"cpu": 1 << 20, "cuda": 256 << 20}


def logprob_from_logits(
    logits: Tensor, targets: Tensor, temperature: float, vocab_size: int
) -> tuple[Tensor, Tensor]:
    """Whole-row definition of both outputs; differentiable by plain autograd. See ops.logprob."""
    z = logits[:, :vocab_size].to(statistics_dtype(logits.dtype)) / temperature  # [R, vocab_size]
    log_p = z.log_softmax(-1)
    p = log_p.exp()
    # A logit of -inf has p log p = 0, and its gradient is 0 as well: hence both `where`.
    finite = torch.where(p > 0, log_p, 0.0)
    entropy = -(p * finite).sum(-1)
    return log_p.gather(1, targets[:, None]).squeeze(1), entropy


def naive(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, vocab_size: int
) -> tuple[Tensor, Tensor]:
    """The whole [R, V] logits at once: what the chunked form is tested against."""
    return logprob_from_logits(hidden @ weight.t(), targets, temperature, vocab_size)


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 stays (gradcheck); everything else computes in float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def logprob_rows(logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """(logprob [b], stats [b, 3]) of logits x [b, V].

    stats = max x, log Σ exp(z), E[z] with z = (x − max x) / T. They stay relative to the max, since
    lse itself would round away the entropy of rows whose logits are shifted by 1e4.
    """
    dtype = statistics_dtype(logits.dtype)
    stats = logits.new_empty(logits.shape[0], 3, dtype=dtype)
    logprob = logits.new_empty(logits.shape[0], dtype=dtype)
    for at in _blocks(logits):
        x = logits[at].to(dtype)
        m = x.amax(1)
        # clamp: −inf · 0 would be NaN in E[z]
        z = x.sub(m[:, None]).div_(temperature).clamp_(min=torch.finfo(dtype).min)
        target = z.gather(1, targets[at, None]).squeeze(1)
        e = z.exp()
        total = e.sum(1)
        mean = e.mul_(z).sum(1) / total
        stats[at] = torch.stack((m, total.log(), mean), 1)
        logprob[at] = target - total.log()
    return logprob, stats


def logprob_rows_backward(
    logits: Tensor,
    targets: Tensor,
    stats: Tensor,
    grad_logprob: Tensor | None,
    grad_entropy: Tensor | None,
    temperature: float,
) -> None:
    """Rewrite logits [b, V] into the gradient by them.

    dz_j = [g_logp (δ_j − p_j) + g_ent p_j (E[z] − z_j)] / T; a gradient of None counts as zero.
    """
    dtype = stats.dtype
    for at in _blocks(logits):
        m, log_sum, mean = stats[at, :, None].unbind(1)  # [b, 1] each
        x = logits[at].to(dtype)
        z = x.sub(m).div_(temperature).clamp_(min=torch.finfo(dtype).min)
        p = (z - log_sum).exp_()
        dz = z.neg_().add_(mean).mul_(p)
        dz = dz.mul_(grad_entropy[at, None]) if grad_entropy is not None else dz.zero_()
        if grad_logprob is not None:
            g = grad_logprob[at, None]
            dz.sub_(p.mul_(g)).scatter_add_(1, targets[at, None], g)
        logits[at] = dz.div_(temperature)


def forward(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    temperature: float,
    vocab_size: int,
    chunk_tokens: int,
    gemm_dtype: torch.dtype,
    *,
    rows_kernel: Callable[..., tuple[Tensor, Tensor]] = logprob_rows,
) -> tuple[Tensor, Tensor, Tensor]:
    """(logprob [R], entropy [R], stats [R, 3]); `rows_kernel` does what logprob_rows does."""
    dtype = statistics_dtype(gemm_dtype)
    logprob = hidden.new_empty(hidden.shape[0], dtype=dtype)
    stats = hidden.new_empty(hidden.shape[0], 3, dtype=dtype)
    for rows, logits in _chunks(hidden, weight, vocab_size, chunk_tokens, gemm_dtype):
        logprob[rows], stats[rows] = rows_kernel(logits, targets[rows], temperature)
    return logprob, stats[:, 1] - stats[:, 2], stats


def backward(
    grad_logprob: Tensor | None,
    grad_entropy: Tensor | None,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    stats: Tensor,
    temperature: float,
    vocab_size: int,
    chunk_tokens: int,
    gemm_dtype: torch.dtype,
    need_hidden: bool,
    need_weight: bool,
    *,
    rows_kernel: Callable[..., None] = logprob_rows_backward,
) -> tuple[Tensor, Tensor]:
    """(d_hidden [R, H], d_weight [V, H]), each without rows when it is not needed.

    The logits are recomputed, and rewritten into their gradient by `rows_kernel`. d_weight is
    summed in float32 over the chunks and cast once.
    """
    d_hidden = torch.empty_like(hidden if need_hidden else hidden[:0])
    d_weight = torch.zeros_like(weight if need_weight else weight[:0], dtype=stats.dtype)
    for rows, logits in _chunks(hidden, weight, vocab_size, chunk_tokens, gemm_dtype):
        grads = [g if g is None else g[rows] for g in (grad_logprob, grad_entropy)]
        rows_kernel(logits, targets[rows], stats[rows], *grads, temperature)
        if need_hidden:
            d_hidden[rows] = logits @ weight[:vocab_size].to(gemm_dtype)
        if need_weight:
            d_weight[:vocab_size] += _outer(logits, hidden[rows].to(gemm_dtype), stats.dtype)
    return d_hidden, d_weight.to(weight.dtype)


def _chunks(
    hidden: Tensor, weight: Tensor, vocab_size: int, chunk_tokens: int, gemm_dtype: torch.dtype
) -> Iterator[tuple[slice, Tensor]]:
    """(rows, logits [rows, vocab_size]) of each chunk; the logits share one reused workspace.

    Rows of `weight` beyond the vocabulary never enter the product, so nothing needs masking.
    """
    head = weight[:vocab_size].to(gemm_dtype).t()
    rows_total = hidden.shape[0]
    workspace = hidden.new_empty(min(chunk_tokens, rows_total), vocab_size, dtype=gemm_dtype)
    for start in range(0, rows_total, chunk_tokens):
        rows = slice(start, min(start + chunk_tokens, rows_total))
        logits = workspace[: rows.stop - rows.start]
        torch.mm(hidden[rows].to(gemm_dtype), head, out=logits)
        yield rows, logits


def _blocks(logits: Tensor) -> Iterator[slice]:
    rows, columns = logits.shape
    size = max(1, _BLOCK_BYTES.get(logits.device.type, 1 << 20) // (4 * columns))
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))


def _outer(dz: Tensor, hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """dzᵀ · hidden as float32 (float64 for float64), never rounded to bfloat16 in between."""
    if dz.dtype == dtype:
        return dz.t() @ hidden
    if dz.is_cuda:
        return torch.mm(dz.t(), hidden, out_dtype=dtype)
    return dz.to(dtype).t() @ hidden.to(dtype)
