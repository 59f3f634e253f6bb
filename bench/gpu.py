"""`python -m bench.gpu`: the ops on CUDA at the paper's shapes, against stated ceilings."""

from __future__ import annotations

import sys

import torch

from bench.__main__ import run_all

if __name__ == "__main__":
    if not torch.cuda.is_available():
        print("bench.gpu: no CUDA device, nothing measured")
        sys.exit(0)
    sys.exit(run_all(["--device", "cuda", *sys.argv[1:]]))
