"""Offsets beyond 2**31 elements, where 32-bit arithmetic wraps: row 14,135 of [T, 151,936] and on.

Large tensors are mapped by the system and stay untouched but where the kernels go. The overflow
assertions of the interpreter (sanitizer.py) are on, so a 32-bit product is found even where it
would wrap unharmed.
"""

from contextlib import contextmanager
from unittest import mock

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder, TensorHandle

from kernels.triton_impl import (
    logprob_rows,
    paged_decode_attention,
    rms_norm,
    rope,
    sample_tokens,
    swiglu,
)
from tests.kernels.triton_policy import plain_decode
from tests.kernels.triton_rows import check_logits, check_rope, check_swiglu, draw

STRIDE = 2**30 + 64  # three rows end beyond 2**31


@pytest.fixture(autouse=True)
def lazy_memory():
    """Fresh tensors stay untouched; filling them with NaN would ask for all their pages."""
    torch.utils.deterministic.fill_uninitialized_memory = False
    yield
    torch.utils.deterministic.fill_uninitialized_memory = True


def far(x):
    """x [3, ...] with its rows STRIDE elements apart."""
    memory = torch.empty(2 * STRIDE + x[0].numel(), dtype=x.dtype)
    return memory.as_strided(x.shape, (STRIDE, *x.stride()[1:])).copy_(x)


def test_t15_logits():
    logits, targets = draw(3, 257, dtype=torch.bfloat16), torch.tensor([0, 100, 256])
    check_logits(far(logits), targets, 0.6)
    _, stats = logprob_rows.logprob_rows(logits, targets, 0.6)
    work, want = far(logits), logits.clone()
    for x in (work, want):
        logprob_rows.logprob_rows_backward(x, targets, stats, torch.ones(3), None, 0.6)
    assert work.equal(want)


def test_t15_sampling():
    logits, numbers = draw(3, 257, dtype=torch.bfloat16), torch.arange(3)
    shape = (0.7, 20, 0.9, numbers, numbers, 257)
    got = sample_tokens.sample_tokens(far(logits), *shape)
    want = sample_tokens.sample_tokens(logits, *shape)
    assert all(a.equal(b) for a, b in zip(got, want, strict=True))


def test_t15_rms_norm():
    x, weight = draw(3, 128, dtype=torch.bfloat16), draw(128, dtype=torch.bfloat16)
    got, want = rms_norm.forward(far(x), weight, 1e-6, far(x)), rms_norm.forward(x, weight, 1e-6, x)
    assert all(a.equal(b) for a, b in zip(got, want, strict=True))
    y, total, rstd = want
    got = rms_norm.backward(far(y), far(y), far(total), weight, rstd)
    want = rms_norm.backward(y, y, total, weight, rstd)
    assert all(a.equal(b) for a, b in zip(got, want, strict=True))


def test_t15_rope_and_swiglu():
    q, k = draw(3, 4, 16, dtype=torch.bfloat16), draw(3, 2, 16, dtype=torch.bfloat16)
    check_rope(far(q), far(k), draw(3, 8), draw(3, 8))
    gate = draw(3, 100, dtype=torch.bfloat16)
    check_swiglu(far(gate), far(gate), far(gate))


def test_t15_paged_decode_attention():
    """The last page of a cache of more than 2**31 elements."""
    caches = [draw(3, 8, 2, 16, dtype=torch.bfloat16, seed=i) for i in range(2)]
    q, table = draw(1, 4, 16, dtype=torch.bfloat16), torch.tensor([[2, 0]], dtype=torch.int32)
    rest = (table, torch.tensor([11], dtype=torch.int32), 0.25)
    got = paged_decode_attention.paged_decode_attention(q, *map(far, caches), *rest)
    assert (got - plain_decode(q, *caches, *rest)).abs().max() < 0.02


@contextmanager
def only_last_program(last):
    """Launches run one program, the last: number `last` on the first axis."""
    execute, identify = GridExecutor.__call__, InterpreterBuilder.create_get_program_id

    def one(self, *arguments, **settings):
        assert self.grid[0] == last + 1
        self.grid = (1, *self.grid[1:])
        execute(self, *arguments, **settings)

    def shifted(self, axis):
        if axis == 0:
            return TensorHandle(np.array([last], dtype=np.int32), tl.int32)
        return identify(self, axis)

    with (
        mock.patch.object(GridExecutor, "__call__", one),
        mock.patch.object(InterpreterBuilder, "create_get_program_id", shifted),
    ):
        yield


# Dense outputs of more than 2**31 elements, from one row seen many times: the last row is right.
ROWS = 2**31 // 1024 + 1


def many(x):
    return x.expand(ROWS, *x.shape[1:])


def test_t15_last_row_of_large_outputs():
    x, up = draw(1, 1024, dtype=torch.bfloat16), draw(1, 1024, dtype=torch.bfloat16, seed=1)
    want = (swiglu.forward(x, up), *swiglu.backward(up, x, up))
    with only_last_program(ROWS - 1):
        got = (swiglu.forward(many(x), many(up)), *swiglu.backward(many(up), many(x), many(up)))
    assert all(a[-1].equal(b[0]) for a, b in zip(got, want, strict=True))

    q, cos, sin = draw(1, 8, 128, dtype=torch.bfloat16), draw(1, 1), draw(1, 1, seed=1)
    angles = [angle.expand(ROWS, 64).contiguous() for angle in (cos, sin)]
    want = rope.rope(q, q, *(angle[:1] for angle in angles))
    with only_last_program(ROWS - 1):
        got = rope.rope(many(q), many(q), *angles)
    assert all(a[-1].equal(b[0]) for a, b in zip(got, want, strict=True))

    want = rms_norm.forward(x, up[0], 1e-6, x)
    with only_last_program((ROWS - 1) // 2):  # two rows of 1,024 are a tile
        got = rms_norm.forward(many(x), up[0], 1e-6, many(x))
    assert all(a[-1].equal(b[0]) for a, b in zip(got, want, strict=True))
