"""`python -m bench.varlen_attention`: causal attention over ragged packed sequences."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

import kernels
from bench.case import Bench, Case, imported
from bench.harness import main


def make(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Case:
    """B sequences whose lengths are spread evenly from `shortest` to `longest`, in random order."""
    count, shortest, longest, heads, kv_heads, size = shape
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    lengths = torch.linspace(shortest, longest, count).long()[order].tolist()
    tokens, scale = sum(lengths), size**-0.5
    q, k, v = (
        torch.randn(tokens, h, size, device=device).to(dtype).requires_grad_()
        for h in (heads, kv_heads, kv_heads)
    )
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int().to(device)

    def ours(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor) -> Tensor:
        return kernels.varlen_attention(q, k, v, bounds, longest, scale=scale)

    def sdpa(*rows: Tensor) -> Tensor:
        """[B, n, heads, D] each, keys and values for fewer heads: faster than repeating those."""
        rows = [x.transpose(1, 2) for x in rows]
        out = F.scaled_dot_product_attention(*rows, is_causal=True, scale=scale, enable_gqa=True)
        return out.transpose(1, 2)

    def by_sequence(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor) -> Tensor:
        parts = zip(*(x.split(lengths) for x in (q, k, v)), strict=True)
        return torch.cat([sdpa(*(x[None] for x in part))[0] for part in parts])

    def padded(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor) -> Tensor:
        out = sdpa(*(pad_sequence(x.split(lengths), batch_first=True) for x in (q, k, v)))
        return torch.cat([row[:n] for row, n in zip(out, lengths, strict=True)])

    def with_varlen_attn(varlen_attn) -> object:
        return lambda q, k, v, bounds: varlen_attn(
            *(q, k, v, bounds, bounds, longest, longest),
            scale=scale,
            window_size=(-1, 0),
            enable_gqa=True,
        )

    # Scores and outputs forward; those again, dP, dQ, dK and dV backward: half of each is masked.
    product = 2.0 * heads * size * sum(n * (n + 1) // 2 for n in lengths)
    moved = 2.0 * (q.numel() + k.numel()) * dtype.itemsize
    return Case(
        (q, k, v, cu_seqlens),
        {
            "ours": ours,
            "SDPA by sequence": by_sequence,
            "SDPA padded": padded,
            "torch varlen_attn": imported(
                "torch.nn.attention.varlen:varlen_attn", with_varlen_attn, on=device.type == "cuda"
            ),
        },
        work=((2 * product, moved), (5 * product, 2 * moved)),
    )


BENCH = Bench(
    "varlen_attention",
    make,
    "B shortest longest Hq Hkv D",
    shapes=[(64, 16, 512, 9, 3, 64), (512, 30, 130, 4, 2, 32)],
    quick=[(3, 2, 40, 4, 2, 16)],
    gpu=[(16, 256, 4096, 12, 2, 128)],
)
if __name__ == "__main__":
    main(BENCH)
