"""`python -m bench.count_lengths`: token counts of a step's responses."""

from __future__ import annotations

import torch

import kernels
from bench.case import Bench, Case
from bench.harness import main
from kernels.torch_ref import count_lengths as ref

EOS, THINK_END = 0, (7, 8)


def make(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Case:
    """Sequences of one length without an end, so that all of each is read."""
    sequences, length = shape
    ids = torch.randint(1, 50_000, (sequences * length,), device=device)
    cu_seqlens = torch.arange(sequences + 1, device=device).int() * length
    return Case(
        (ids, cu_seqlens.int()),
        {
            "ours": lambda *tensors: kernels.count_lengths(
                *tensors, eos_id=EOS, think_end=THINK_END
            ),
            "eager": lambda *tensors: ref.count_lengths(*tensors, EOS, [*THINK_END]),
        },
        work=((0.0, ids.nbytes),),
    )


BENCH = Bench(
    "count_lengths",
    make,
    "B T",
    shapes=[(256, 4096)],
    quick=[(4, 33)],
    gpu=[(2048, 4096)],
    dtypes=[torch.int64],
    gpu_dtypes=[torch.int64],
)
if __name__ == "__main__":
    main(BENCH)
