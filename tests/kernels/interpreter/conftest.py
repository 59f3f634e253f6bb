"""Tests of the Triton kernels in Triton's interpreter, on CPU tensors: in a process of their own.

TRITON_INTERPRET=1 must be set before triton is imported and replaces its compiler, so an ordinary
run does not collect this folder; tests/kernels/test_triton_interpreter.py runs it.
"""

import os
from collections.abc import Iterator

import pytest
import torch

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore_glob = [] if INTERPRETING else ["test_*.py"]

if INTERPRETING:
    from sanitizer import sanitized

    @pytest.fixture(autouse=True)
    def checked() -> Iterator[None]:
        """Memory, races, integers and bfloat16 are checked; fresh tensors hold NaN."""
        torch.use_deterministic_algorithms(True)  # fills `torch.empty`, so skipped outputs show
        with sanitized():
            yield
        torch.use_deterministic_algorithms(False)
