"""`python -m bench.linear_logprob`: log-prob and entropy under a linear head, no logits."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

import kernels
from bench.case import Bench, Case, imported
from bench.harness import main

TEMPERATURE = 0.6


def eager(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """As one writes it: the whole logits, log_softmax, gather, entropy."""
    log_p = ((hidden @ weight.t()).float() / TEMPERATURE).log_softmax(-1)
    return log_p.gather(1, targets[:, None]).squeeze(1), -(log_p.exp() * log_p).sum(-1)


class Gemms(torch.autograd.Function):
    """The products alone, in the tiles that suit them: one forward; three backward.

    Three, as the backward pass recomputes the logits. On CUDA a tile is rows as a whole.
    """

    @staticmethod
    def tiles(hidden: Tensor, weight: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
        """(rows, columns, logits there)."""
        size = (4096, weight.shape[0]) if hidden.is_cuda else (512, 1024)
        room = hidden.new_empty(size[0] * size[1])
        for v in range(0, weight.shape[0], size[1]):
            for r in range(0, hidden.shape[0], size[0]):
                rows, columns = slice(r, r + size[0]), slice(v, v + size[1])
                a, b = hidden[rows], weight[columns]
                logits = room[: len(a) * len(b)].view(len(a), len(b))
                yield rows, columns, torch.mm(a, b.t(), out=logits)

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, weight)
        for _ in Gemms.tiles(hidden, weight):
            pass
        return hidden[:, 0].clone()

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        hidden, weight = ctx.saved_tensors
        d_hidden, d_weight = torch.zeros_like(hidden), torch.zeros_like(weight)
        for rows, columns, dz in Gemms.tiles(hidden, weight):
            d_hidden[rows].addmm_(dz, weight[columns])
            d_weight[columns].addmm_(dz.t(), hidden[rows])
        return d_hidden, d_weight, None


def ours(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The op, on the backend that is chosen automatically."""
    return kernels.linear_logprob(hidden, weight, targets, temperature=TEMPERATURE)


def make(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Case:
    """Inputs of one case; no product is possible without these FLOPs and these bytes."""
    rows, width, vocab = shape
    hidden = torch.randn(rows, width, device=device).to(dtype).requires_grad_()
    weight = (torch.randn(vocab, width, device=device) / width**0.5).to(dtype).requires_grad_()
    targets = torch.randint(0, vocab, (rows,), device=device)
    product, moved = 2.0 * rows * width * vocab, (hidden.numel() + weight.numel()) * dtype.itemsize

    def chunked(options) -> object:
        return lambda h, w, t: F.linear_cross_entropy(
            h / TEMPERATURE, w, t, reduction="none", options=options
        )

    return Case(
        (hidden, weight, targets),
        {
            "ours": ours,
            "the GEMMs alone": Gemms.apply,
            "eager": eager,
            "torch.compile": torch.compile(eager, dynamic=False),
            "linear_cross_entropy chunked": imported(
                "torch.nn:LinearCrossEntropyOptions", lambda options: chunked(options())
            ),
            "Liger": imported(
                "liger_kernel.ops.fused_linear_cross_entropy:LigerFusedLinearCrossEntropyFunction",
                lambda f: lambda h, w, t: f.apply(h / TEMPERATURE, w, t),
                on=device.type == "cuda",
            ),
        },
        work=((product, moved), (3 * product, 2 * moved)),
        gemm=(rows, width, vocab),
    )


BENCH = Bench(
    "linear_logprob",
    make,
    "T H V",
    shapes=[(2048, 576, 49_152)],
    quick=[(64, 32, 257)],
    gpu=[(16_384, 1536, 151_936)],
)
if __name__ == "__main__":
    main(BENCH)
