"""Log-probability and entropy of a target under a linear head, without the [R, V] logits.

The vendor GEMM fills one tile of logits; the row pass reduces it, or rewrites it into its gradient,
which further GEMMs consume; statistics of tiles are merged at the end. Column tiles are the outer
loop, so that the gradient of their rows of the head is summed in place and finished once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

# Bytes of float32 logits in one block of rows. On the CPU the four passes over a block should find
# it in cache; on an accelerator a block should be large enough to hide the launches.
# Rows and columns of a tile. On the CPU it stays in cache from the product that fills it to those
# that consume it, and they ran at 95 to 100 GFLOP/s where whole rows of 49,152 gave 57 to 72. An
# accelerator takes `chunk_tokens` whole rows: large products are what it is good at.
TILE = {"cpu": (512, 1024)}
_BLOCK_BYTES = {"cpu": 1 << 20, "cuda": 256 << 20}


def definition(
    logits: Tensor, targets: Tensor, temperature: float, vocab_size: int
) -> tuple[Tensor, Tensor]:
    """Both outputs of ops.logprob_from_logits from whole rows; differentiable by plain autograd."""
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
    return definition(hidden @ weight.t(), targets, temperature, vocab_size)


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

    dz_j = [g_logp (δ_j − p_j) + g_ent p_j (E[z] − z_j)] / T; a gradient of None counts as zero. A
    target outside [0, V) is in another tile: no δ here.
    """
    dtype, columns = stats.dtype, logits.shape[1]
    for at in _blocks(logits):
        m, log_sum, mean = stats[at, :, None].unbind(1)  # [b, 1] each
        x = logits[at].to(dtype)
        z = x.sub(m).div_(temperature).clamp_(min=torch.finfo(dtype).min)
        p = (z - log_sum).exp_()
        dz = z.neg_().add_(mean).mul_(p)
        dz = dz.mul_(grad_entropy[at, None]) if grad_entropy is not None else dz.zero_()
        if grad_logprob is not None:
            g, target = grad_logprob[at, None], targets[at, None]
            inside = (target >= 0) & (target < columns)
            dz.sub_(p.mul_(g)).scatter_add_(1, target.clamp(0, columns - 1), g * inside)
        logits[at] = dz.div_(temperature)


def product(a: Tensor, b: Tensor, out: Tensor, *, add: bool) -> None:
    """out = a · b, or out += a · b. Summed in out's dtype: bfloat16 factors may make float32."""
    if a.dtype == out.dtype:
        torch.addmm(out, a, b, beta=float(add), out=out)
        return
    whole = torch.mm(a, b, out_dtype=out.dtype) if a.is_cuda else a.to(out.dtype) @ b.to(out.dtype)
    if add:
        out += whole
    else:
        out.copy_(whole)


def logits_product(hidden: Tensor, head: Tensor, out: Tensor) -> Tensor:
    """hidden [b, H] · headᵀ [H, v] in `out`."""
    return torch.mm(hidden, head.t(), out=out)


def merge(
    parts: list[tuple[Tensor, Tensor]],
    targets: Tensor,
    width: int,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """(logprob [b], stats [b, 3]) of whole rows from those of their tiles of `width` columns."""
    if len(parts) == 1:
        return parts[0]
    target = torch.stack([logprob for logprob, _ in parts])  # [tiles, b]
    m, log_sum, mean = torch.stack([stats for _, stats in parts]).unbind(2)  # [tiles, b] each
    empty = m == -torch.inf  # a tile of nothing but −inf has no share, and NaN for statistics
    log_sum, mean = log_sum.where(~empty, 0.0), mean.where(~empty, 0.0)
    top = m.amax(0)
    gap = ((m - top) / temperature).clamp_(min=torch.finfo(m.dtype).min)
    share = log_sum + gap
    total = share.logsumexp(0)
    owner = targets // width
    # the tile's own max and sum cancel: log-probs of rows shifted by 1e4 stay exact
    logprob = (target + share).gather(0, owner[None]).squeeze(0) - total
    mean = ((share - total).exp_() * (mean + gap)).sum(0)
    return logprob, torch.stack((top, total, mean), 1)


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
    merge: Callable[..., tuple[Tensor, Tensor]] = merge,
    logits_product: Callable[[Tensor, Tensor, Tensor], Tensor] = logits_product,
) -> tuple[Tensor, Tensor, Tensor]:
    """(logprob [R], entropy [R], stats [R, 3]); `rows_kernel` does what logprob_rows does."""
    dtype = statistics_dtype(gemm_dtype)
    hidden = hidden.to(gemm_dtype)
    rows, columns = tiles(hidden, vocab_size, chunk_tokens)
    workspace = tile_workspace(hidden, rows, columns)
    parts: list[list[tuple[Tensor, Tensor]]] = [[] for _ in rows]
    for at in columns:
        head = weight[at].to(gemm_dtype)  # a tile at a time: no copy of a float32 master
        for r, part in zip(rows, parts, strict=True):
            logits = tile_logits(hidden[r], head, workspace, logits_product)
            part.append(rows_kernel(logits, within(targets[r], at), temperature))
    logprob = hidden.new_empty(hidden.shape[0], dtype=dtype)
    stats = hidden.new_empty(hidden.shape[0], 3, dtype=dtype)
    for r, part in zip(rows, parts, strict=True):
        logprob[r], stats[r] = merge(part, targets[r], columns[0].stop, temperature)
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
    product: Callable[..., None] = product,
    logits_product: Callable[[Tensor, Tensor, Tensor], Tensor] = logits_product,
) -> tuple[Tensor, Tensor]:
    """(d_hidden [R, H], d_weight [V, H]), each without rows when it is not needed.

    The logits are recomputed, and rewritten into their gradient by `rows_kernel`. Sums over tiles
    are of float32 and cast once: d_weight's are done tile by tile, d_hidden's at the end.
    """
    dtype, low = stats.dtype, hidden.to(gemm_dtype)
    rows, columns = tiles(low, vocab_size, chunk_tokens)
    workspace = tile_workspace(low, rows, columns)
    d_hidden = torch.zeros_like(hidden if need_hidden else hidden[:0], dtype=dtype)
    d_weight = torch.empty_like(weight if need_weight else weight[:0])
    d_weight[vocab_size if rows else 0 :] = 0.0  # of padding, or of everything
    for at in columns:
        head = weight[at].to(gemm_dtype)
        d_head = d_weight[at]
        if d_weight.dtype != dtype:
            d_head = torch.empty_like(d_head, dtype=dtype)
        for r in rows:
            logits = tile_logits(low[r], head, workspace, logits_product)
            grads = [g if g is None else g[r] for g in (grad_logprob, grad_entropy)]
            rows_kernel(logits, targets[r] - at.start, stats[r], *grads, temperature)
            if need_hidden:
                product(logits, head, d_hidden[r], add=True)
            if need_weight:
                product(logits.t(), low[r], d_head, add=r.start > 0)
        if need_weight and rows and d_head.dtype != d_weight.dtype:
            d_weight[at] = d_head
    return d_hidden.to(hidden.dtype), d_weight


def tiles(hidden: Tensor, vocab_size: int, chunk_tokens: int) -> tuple[list[slice], list[slice]]:
    """How the logits [R, vocab_size] are cut: slices of rows, and of columns.

    Columns of `weight` beyond the vocabulary are in no tile, so nothing needs masking.
    """
    height, width = TILE.get(hidden.device.type, (chunk_tokens, vocab_size))
    if vocab_size < width:  # as many logits of more rows
        height = height * width // vocab_size
    height = min(height, chunk_tokens)

    def cut(total: int, size: int) -> list[slice]:
        return [slice(at, min(at + size, total)) for at in range(0, total, size)]

    return cut(hidden.shape[0], height), cut(vocab_size, width)


def tile_workspace(hidden: Tensor, rows: list[slice], columns: list[slice]) -> Tensor:
    """Room for one tile of logits, flat: a tile at the edge is dense in it as well."""
    return hidden.new_empty(rows[0].stop * columns[0].stop if rows else 0)


def tile_logits(
    hidden: Tensor,
    head: Tensor,
    workspace: Tensor,
    logits_product: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """hidden [b, H] · headᵀ [H, v] in `workspace`; the one product that all log-probs come from."""
    size = (hidden.shape[0], head.shape[0])
    return logits_product(hidden, head, workspace[: size[0] * size[1]].view(size))


def within(targets: Tensor, at: slice) -> Tensor:
    """Target indices inside a tile; those of other tiles are moved to its edge."""
    return (targets - at.start).clamp_(0, at.stop - at.start - 1)


def _blocks(logits: Tensor) -> Iterator[slice]:
    rows, columns = logits.shape
    size = max(1, _BLOCK_BYTES.get(logits.device.type, 1 << 20) // (4 * columns))
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))
