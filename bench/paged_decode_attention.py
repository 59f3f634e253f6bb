"""`python -m bench.paged_decode_attention`: one new token a row over a paged cache."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

import kernels
from bench.case import Bench, Case
from bench.harness import main


def make(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Case:
    """B rows with lengths spread evenly from `shortest` to `longest`, their pages in one pool."""
    count, shortest, longest, page, heads, kv_heads, size = shape
    lengths = torch.linspace(shortest, longest, count).int()
    width, scale = -(longest // -page), size**-0.5
    table = torch.randperm(count * width, generator=torch.Generator().manual_seed(0))
    q = torch.randn(count, heads, size, device=device).to(dtype)
    k_cache, v_cache = torch.randn(2, count * width, page, kv_heads, size, device=device).to(dtype)
    dense = torch.randn(2, count, longest, kv_heads, size, device=device).to(dtype)
    mask = (torch.arange(longest) < lengths[:, None])[:, None, None].to(device)

    def ours(q: Tensor, k: Tensor, v: Tensor, table: Tensor, lengths: Tensor) -> Tensor:
        return kernels.paged_decode_attention(q, k, v, table, lengths, scale=scale)

    def padded(q: Tensor, *paged: Tensor) -> Tensor:
        """Over a dense cache of the same tokens, so without gathering pages."""
        return F.scaled_dot_product_attention(
            q.unflatten(1, (kv_heads, -1)),
            *(x.transpose(1, 2) for x in dense),
            attn_mask=mask,
            scale=scale,
        ).flatten(1, 2)

    def by_row(q: Tensor, *paged: Tensor) -> Tensor:
        """As `padded`, without what lies beyond each row's length."""
        out = [
            F.scaled_dot_product_attention(
                row.unflatten(0, (kv_heads, -1))[None],
                *(x[None, :n].transpose(1, 2) for x in cache),
                scale=scale,
            ).flatten(1, 2)
            for row, cache, n in zip(q, dense.unbind(1), sizes, strict=True)
        ]
        return torch.cat(out)

    sizes = lengths.tolist()
    tokens = sum(sizes)
    return Case(
        (
            q,
            k_cache,
            v_cache,
            table.int().view(count, width).to(device),
            lengths.to(device),
        ),
        {"ours": ours, "SDPA padded": padded, "SDPA by row": by_row},
        work=((4.0 * heads * size * tokens, 2.0 * kv_heads * size * tokens * dtype.itemsize),),
    )


BENCH = Bench(
    "paged_decode_attention",
    make,
    "B shortest longest page Hq Hkv D",
    shapes=[(64, 16, 512, 16, 9, 3, 64), (512, 30, 130, 16, 4, 2, 32)],
    quick=[(3, 2, 40, 16, 4, 2, 16)],
    gpu=[(256, 512, 4096, 256, 12, 2, 128)],
)
if __name__ == "__main__":
    main(BENCH)
