"""Decode steps as CUDA graphs: one launch in place of hundreds (`rollout.cuda_graphs`).

A graph is bound to the number of rows, so a few sizes are captured, each at its first use, and a
batch takes the next larger one; the caller parks the rows in between. A decode step reads and
writes the runner's own tensors only, so nothing is copied in. Graphs live as long as the cache they
write to: one engine call.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

SMALLEST, STEP = 8, 32  # sizes are 8, 16, 32, then multiples of 32: at most 31 rows for nothing

Step = Callable[[], tuple[Tensor, Tensor]]


def padded_rows(rows: int, most: int) -> int:
    """The size of the graph that serves `rows` rows of a batch of at most `most`."""
    size = SMALLEST
    while size < rows:
        size = 2 * size if size < STEP else size + STEP
    return min(size, most)


def capture(step: Step, state: Tensor) -> Step:
    """`step` as a graph, its outputs in the same place at each replay. CUDA only.

    The warm-up, on a side stream as capturing asks for, moves `state`, which is put back.
    """
    before = state.clone()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    state.copy_(before)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = step()

    def replay() -> tuple[Tensor, Tensor]:
        graph.replay()
        return outputs

    return replay
