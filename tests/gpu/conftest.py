"""Tests on a CUDA device (marked `gpu`, else skipped) and on fake CUDA tensors, which need none."""

import importlib.util

# Where triton is not to be had, as on macOS, there is no CUDA device either.
collect_ignore = [] if importlib.util.find_spec("triton") else ["test_triton_ops.py"]
