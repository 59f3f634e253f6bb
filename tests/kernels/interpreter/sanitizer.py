"""What the interpreter of Triton 3.7 does not check or gets wrong, made good for the tests.

Right bfloat16: it casts float32 to bfloat16 by truncation, multiplies `tl.dot` operands as raw
16-bit integers, and does bfloat16 arithmetic on raw bits. Here casts round to nearest even, `dot`
widens its operands (as a tensor core's products are exact in float32), and any other arithmetic on
bfloat16 is an error: the kernels widen as they load.

NaN: `tl.maximum` and `tl.minimum` drop it here, as the hardware's do; NumPy's keep it.

Memory: every address that a program reads or writes must lie in a tensor the launch was given, and
what one program writes no other may read or write. So out-of-bounds accesses and races, which on a
GPU would show at times, are errors at once. Float atomics are errors.

Integers: `InterpreterOptions(debug=True)` turns Triton's own overflow assertions on.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import numpy as np
import torch
import triton.language as tl
from triton.runtime.interpreter import (
    GridExecutor,
    InterpreterBuilder,
    InterpreterOptions,
    ReduceOps,
    TensorHandle,
    interpreter_builder,
)


class Sanitized(AssertionError):
    """A kernel did what it must not; the interpreter wraps this in its own error."""


class Launch:
    """Addresses that the programs of one launch may and did touch."""

    def __init__(self, tensors: list[torch.Tensor]) -> None:
        extents = sorted(_extent(x) for x in tensors if x.numel())
        self.extents: list[tuple[int, int]] = []
        for start, stop in extents:  # views of one tensor overlap: one extent
            if self.extents and start < self.extents[-1][1]:
                start, before = self.extents.pop()
                stop = max(stop, before)
            self.extents.append((start, stop))
        self.read: dict[int, list[np.ndarray]] = {}
        self.written: dict[int, list[np.ndarray]] = {}

    def touch(self, pointers: np.ndarray, mask: np.ndarray, size: int, write: bool) -> None:
        """Note an access and check that it stays within the tensors."""
        pointers, mask = np.broadcast_arrays(pointers, mask)
        address = pointers[mask].astype(np.int64)
        if not address.size:
            return
        low, high = int(address.min()), int(address.max())
        if not any(start <= low and high + size <= stop for start, stop in self.extents):
            inside = np.zeros(address.shape, bool)
            for start, stop in self.extents:
                inside |= (address >= start) & (address + size <= stop)
            if not inside.all():
                kind = "write" if write else "read"
                raise Sanitized(f"{kind} outside of all tensors: {(~inside).sum()} addresses")
        x, y, z = interpreter_builder.grid_idx
        notes = self.written if write else self.read
        notes.setdefault((x * 65536 + y) * 65536 + z, []).append(address)

    def finish(self) -> None:
        """Raise when programs met at an address that one of them wrote."""
        written, writer = _flat(self.written)
        read, reader = _flat(self.read)
        order = np.argsort(written, kind="stable")
        written, writer = written[order], writer[order]
        twice = (written[1:] == written[:-1]) & (writer[1:] != writer[:-1])
        if twice.any():
            raise Sanitized(f"race: two programs write {twice.sum()} addresses")
        if written.size and read.size:
            at = np.searchsorted(written, read).clip(max=written.size - 1)
            met = (written[at] == read) & (writer[at] != reader)
            if met.any():
                raise Sanitized(f"race: {met.sum()} reads of what another program writes")


def _extent(x: torch.Tensor) -> tuple[int, int]:
    last = sum((n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True))
    return x.data_ptr(), x.data_ptr() + (last + 1) * x.element_size()


def _flat(notes: dict[int, list[np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Addresses and their programs."""
    parts = [(np.unique(np.concatenate(found)), program) for program, found in notes.items()]
    if not parts:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    programs = [np.full(found.shape, program) for found, program in parts]
    return np.concatenate([found for found, _ in parts]), np.concatenate(programs)


def to_bfloat16(x: np.ndarray) -> np.ndarray:
    """Bits of float32 values rounded to nearest even; NaN stays NaN."""
    return torch.from_numpy(np.ascontiguousarray(x)).bfloat16().view(torch.uint16).numpy()


def to_float32(bits: np.ndarray) -> np.ndarray:
    """Values of bfloat16 bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


Patch = tuple[object, str, object]


def exact_bfloat16() -> list[Patch]:
    """Right casts and products; an error for any other arithmetic."""
    cast, dot, reduce = InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot, ReduceOps.apply

    def new_cast(self, src, dst_type):
        a, b = src.dtype.scalar, dst_type.scalar
        if a == tl.bfloat16 and b == tl.float32:
            return TensorHandle(to_float32(src.data), b)
        if a == tl.float32 and b == tl.bfloat16:
            return TensorHandle(to_bfloat16(src.data), b)
        if tl.bfloat16 in (a, b) and a != b:
            raise Sanitized(f"cast from {a} to {b}")
        return cast(self, src, dst_type)

    def new_dot(self, a, b, *rest):
        wide = [
            TensorHandle(to_float32(x.data), tl.float32) if x.dtype.scalar == tl.bfloat16 else x
            for x in (a, b)
        ]
        return dot(self, *wide, *rest)

    def refusing(original):
        def operation(self, *arguments):
            handles = [x for x in arguments if isinstance(x, TensorHandle)]
            if any(x.dtype.scalar == tl.bfloat16 for x in handles):
                raise Sanitized("arithmetic in bfloat16: widen to float32 first")
            return original(self, *arguments)

        return operation

    def new_reduce(self, argument):
        for x in argument if isinstance(argument, tuple) else (argument,):
            if x.dtype == tl.bfloat16:
                raise Sanitized("reduction in bfloat16: widen to float32 first")
        return reduce(self, argument)

    arithmetic = ("binary_op", "unary_op", "create_fma", "create_idiv", "create_fabs")
    return [
        *((InterpreterBuilder, x, refusing(getattr(InterpreterBuilder, x))) for x in arithmetic),
        (InterpreterBuilder, "cast_impl", new_cast),
        (InterpreterBuilder, "create_dot", new_dot),
        (ReduceOps, "apply", new_reduce),
    ]


def hardware_max() -> list[Patch]:
    """The larger of a number and NaN is the number."""
    return [
        (InterpreterBuilder, "create_maxnumf", lambda self, a, b: self.binary_op(a, b, np.fmax)),
        (InterpreterBuilder, "create_minnumf", lambda self, a, b: self.binary_op(a, b, np.fmin)),
    ]


def watched_memory() -> list[Patch]:
    """Each load and store is noted in the Launch it belongs to."""
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store
    execute = GridExecutor.__call__
    launch: list[Launch] = []

    def size(pointers):
        return max(1, pointers.get_element_ty().primitive_bitwidth // 8)

    def new_load(self, pointers, mask, *rest):
        launch[-1].touch(pointers.data, mask.data, size(pointers), write=False)
        return load(self, pointers, mask, *rest)

    def new_store(self, pointers, value, mask, *rest):
        launch[-1].touch(pointers.data, mask.data, size(pointers), write=True)
        return store(self, pointers, value, mask, *rest)

    def no_atomics(self, *arguments):
        raise Sanitized("an atomic: sums across programs take partials and a second launch")

    def new_execute(self, *arguments, **settings):
        tensors = [x for x in (*arguments, *settings.values()) if isinstance(x, torch.Tensor)]
        launch.append(Launch(tensors))
        with np.errstate(all="ignore"):
            execute(self, *arguments, **settings)
        launch.pop().finish()

    return [
        (InterpreterBuilder, "create_masked_load", new_load),
        (InterpreterBuilder, "create_masked_store", new_store),
        (InterpreterBuilder, "create_atomic_rmw", no_atomics),
        (GridExecutor, "__call__", new_execute),
    ]


@contextmanager
def sanitized() -> Iterator[None]:
    """Within, the interpreter is as this module's docstring says."""
    overflow = (interpreter_builder, "options", InterpreterOptions(debug=True))
    with ExitStack() as stack:
        patches = (*exact_bfloat16(), *hardware_max(), *watched_memory(), overflow)
        for owner, name, value in patches:
            stack.enter_context(mock.patch.object(owner, name, value))
        yield
