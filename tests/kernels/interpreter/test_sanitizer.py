"""The interpreter lane's checks find what they look for: each kernel here is wrong in one way."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from sanitizer import to_bfloat16
from triton.runtime.errors import InterpreterError


@triton.jit
def bfloat16_sum_kernel(x, out):
    lane = tl.arange(0, 4)
    value = tl.load(x + lane)
    tl.store(out + lane, value + value)


@triton.jit
def overrun_kernel(x, out, size):
    lane = tl.arange(0, 8)
    tl.store(out + lane, tl.load(x + lane, mask=lane < size, other=0.0))


@triton.jit
def overread_kernel(x, out, size):
    lane = tl.arange(0, 8)
    tl.store(out + lane, tl.load(x + lane), mask=lane < size)


@triton.jit
def two_writers_kernel(x, out):
    tl.store(out, tl.load(x + tl.program_id(0)))


@triton.jit
def neighbour_kernel(x):
    program = tl.program_id(0)
    tl.store(x + program, tl.load(x + (program + 1) % 4))


@triton.jit
def atomic_kernel(x):
    tl.atomic_add(x, 1.0)


@triton.jit
def narrow_offset_kernel(x, out, stride):
    tl.store(out, tl.load(x + (tl.program_id(0) + 3) * stride))


@triton.jit
def round_kernel(x, out):
    tl.store(out + tl.arange(0, 4), tl.load(x + tl.arange(0, 4)))


@pytest.mark.parametrize(
    ("kernel", "grid", "arguments", "message"),
    [
        (bfloat16_sum_kernel, 1, (torch.ones(4).bfloat16(), torch.ones(4).bfloat16()), "bfloat16"),
        (overrun_kernel, 1, (torch.ones(6), torch.ones(6), 6), "write outside"),
        (overread_kernel, 1, (torch.ones(6), torch.ones(6), 6), "read outside"),
        (two_writers_kernel, 2, (torch.ones(2), torch.ones(1)), "two programs write"),
        (neighbour_kernel, 4, (torch.ones(4),), "another program writes"),
        (atomic_kernel, 1, (torch.ones(1),), "atomic"),
        (narrow_offset_kernel, 1, (torch.ones(4), torch.ones(1), 2**30), "int32 overflow"),
    ],
)
def test_a_wrong_kernel_is_found(kernel, grid, arguments, message):
    with pytest.raises((InterpreterError, AssertionError), match=message):
        kernel[(grid,)](*arguments)


def test_bfloat16_rounds_to_nearest_even():
    # One half above 1 (to even: down), three halves (up), just over a half (up), and a NaN.
    x = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, float("nan")])
    out = torch.empty(4, dtype=torch.bfloat16)
    round_kernel[(1,)](x, out)
    assert out[:3].tolist() == [1.0, 1 + 2**-6, 1 + 2**-7] and out[3].isnan()
    assert to_bfloat16(np.float32([1.0])).tolist() == [0x3F80]


@triton.jit
def maximum_kernel(x, out):
    lane = tl.arange(0, 2)
    tl.store(out + lane, tl.maximum(tl.load(x + lane), 1.0))


def test_maximum_drops_nan():
    out = torch.empty(2)
    maximum_kernel[(1,)](torch.tensor([torch.nan, 2.0]), out)
    assert out.tolist() == [1.0, 2.0]
