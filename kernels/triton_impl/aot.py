"""What the kernels cost on each GPU, without one: compiled as at the real launch, then read back.

`launches` runs the ops' own wrappers on meta tensors of the 1.5B model and records what they would
launch, so signatures, constants and warps cannot drift from the real ones; Triton's own binder
derives the alignment attributes as it does at run time. `measure` compiles a launch for one target
and reads registers, stack, shared memory and the instructions that tell wide loads, spills and
float64 arithmetic. `python -m kernels.triton_impl.aot [path]` writes the table that the tests
compare. Not under TRITON_INTERPRET=1, which replaces the compiler.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from kernels.triton_impl import (
    adamw_split,
    count_lengths,
    lcpo_advantage,
    logprob_rows,
    paged_decode_attention,
    policy_loss,
    rms_norm,
    rope,
    sample_tokens,
    swiglu,
)

TABLE = Path(__file__).resolve().parents[2] / "docs" / "kernel_resources.md"
TARGETS = (80, 90, 100)  # A100, H100, B200
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # bytes a block may ask for
_SHARED_OF_SM = {80: 164 * 1024, 90: 228 * 1024, 100: 228 * 1024}
_REGISTERS_OF_SM, _WARPS_OF_SM, _BLOCKS_OF_SM = 65536, 64, 32
# The 1.5B model: vocabulary, hidden and MLP size, heads of queries and keys and their size.
VOCABULARY, HIDDEN, MLP, HEADS, KV_HEADS, HEAD = 151_936, 1536, 8960, 12, 2, 128
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Launch:
    """One kernel as a wrapper would launch it."""

    name: str  # kernel, variant and dtype
    kernel: JITFunction
    arguments: tuple[object, ...]
    settings: dict[str, object]  # constants and options


@dataclass(frozen=True)
class Resources:
    """One row of the table."""

    kernel: str
    target: str
    warps: int
    registers: int  # a thread
    stack: int  # bytes a thread
    spills: int  # instructions on local memory
    shared: int  # bytes a block
    loads_128: int  # instructions that load 128 bits from global memory
    fp64: int  # float64 add, multiply and fused instructions
    occupancy: int  # percent of the warps a multiprocessor can hold


def launches() -> list[Launch]:
    """Every kernel here, in the dtypes it is used in, at the shapes of the 1.5B model."""
    found = []
    for name, call in _calls():
        recorded: list[Launch] = []

        def record(self, *arguments, grid, warmup, name=name, recorded=recorded, **settings):
            kernel = self.__name__.removesuffix("_kernel")
            label = " ".join([kernel, *name.split()])
            recorded.append(Launch(label, self, arguments, settings))

        with mock.patch.object(JITFunction, "run", record):
            call()
        found += recorded
    return list({launch.name: launch for launch in found}.values())


def _calls() -> Iterator[tuple[str, Callable[[], object]]]:
    """(variant and dtype, a call of a wrapper)."""
    rows = 4096
    for name, dtype in _DTYPES.items():
        empty = partial(torch.empty, device="meta", dtype=dtype)
        f32 = partial(torch.empty, device="meta", dtype=torch.float32)
        i32 = partial(torch.empty, device="meta", dtype=torch.int32)
        targets = torch.empty(rows, device="meta", dtype=torch.int64)
        logits, stats = empty(rows, VOCABULARY), f32(rows, 3)
        yield name, partial(logprob_rows.logprob_rows, logits, targets, 0.6)
        yield (
            name,
            partial(
                logprob_rows.logprob_rows_backward,
                *(logits, targets, stats, f32(rows), f32(rows), 0.6),
            ),
        )
        x, weight = empty(rows, HIDDEN), empty(HIDDEN)
        yield name, partial(rms_norm.forward, x, weight, 1e-6, x)
        yield name, partial(rms_norm.backward, x, x, x, weight, f32(rows))
        q, k = empty(rows, HEADS, HEAD), empty(rows, KV_HEADS, HEAD)
        yield name, partial(rope.rope, q, k, f32(rows, HEAD // 2), f32(rows, HEAD // 2))
        gate = empty(rows, MLP)
        yield name, partial(swiglu.forward, gate, gate)
        yield name, partial(swiglu.backward, gate, gate, gate)
        cache = empty(512, 256, KV_HEADS, HEAD)
        yield (
            name,
            partial(
                paged_decode_attention.paged_decode_attention,
                *(q, cache, cache, i32(rows, 32), i32(rows), HEAD**-0.5),
            ),
        )
    logits = f32(256, VOCABULARY)
    for name, temperature, top_k, top_p in (
        ("greedy", 0.0, 0, 1.0),
        ("whole", 0.6, 0, 1.0),
        ("cut", 0.6, 50, 0.95),
    ):
        yield (
            f"{name} fp32",
            partial(
                sample_tokens.sample_tokens,
                *(logits, temperature, top_k, top_p, targets[:256], targets[:256], VOCABULARY),
            ),
        )
    yield "", partial(count_lengths.count_lengths, targets, i32(65), 151_643, [151_649])
    yield (
        "fp32",
        partial(
            lcpo_advantage.lcpo_advantage,
            *(f32(2048), *(i32(2048) for _ in range(4)), 128),
            *("linear", 0.0003, 0.0003, 0.5, "grpo", 1e-6),
        ),
    )
    skip = torch.empty((), device="meta", dtype=torch.bool)
    low, moment = empty(MLP, HIDDEN).view(torch.int16), f32(MLP, HIDDEN)
    yield (
        "",
        partial(
            adamw_split.adamw_split_,
            *(empty(MLP, HIDDEN), low, moment, moment, moment, f32(3), skip),
            *(0.9, 0.999, 1e-8),
        ),
    )
    tokens = f32(16_384)
    yield (
        "fp32",
        partial(
            policy_loss.policy_loss,
            *(tokens, tokens, tokens, tokens, f32(64), f32(64), i32(16_384)),
            *(0.2, 0.2, 0.001, "k3", 0.001),
        ),
    )


def compiled(launch: Launch, target: int) -> triton.compiler.CompiledKernel:
    """The launch's kernel for compute capability `target`, specialised as the JIT would."""
    gpu = GPUTarget("cuda", target, 32)
    backend, kernel = make_backend(gpu), launch.kernel
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, options = bind(*launch.arguments, **launch.settings)
    options, signature, constants, attributes = kernel._pack_args(
        backend, launch.settings, bound, specialization, options
    )
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=gpu, options=options.__dict__)


def measure(launch: Launch, target: int) -> Resources:
    """Compile for compute capability `target` (80, 90, 100) and read what came out."""
    built = compiled(launch, target)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "--dump-resource-usage", file.name)
        sass = _tool("nvdisasm", "--print-code", file.name)
    registers, stack = (int(re.search(rf"{key}:(\d+)", usage)[1]) for key in ("REG", "STACK"))
    warps, shared = built.metadata.num_warps, built.metadata.shared
    return Resources(
        launch.name,
        f"sm_{target}",
        warps,
        registers,
        stack,
        len(re.findall(r"\b(?:LDL|STL)\b", sass)),
        shared,
        len(re.findall(r"\bLDG(?:STS)?\.\S*128", sass)),
        len(re.findall(r"\bD(?:ADD|MUL|FMA)\b", sass)),
        _occupancy(warps, registers, shared, target),
    )


def _measure(task: tuple[int, int]) -> Resources:
    """`measure` for another process, which cannot be sent a launch but can be told its index."""
    at, target = task
    return measure(launches()[at], target)


def _tool(name: str, *arguments: str) -> str:
    path = getattr(triton.knobs.nvidia, name).path
    ran = subprocess.run([path, *arguments], capture_output=True, text=True, check=True)
    return ran.stdout


def _occupancy(warps: int, registers: int, shared: int, target: int) -> int:
    """Resident warps in percent: registers come in units of 256 a warp, shared of 1 KiB a block."""
    of_warp = -(-registers * 32 // 256) * 256
    blocks = min(
        _BLOCKS_OF_SM,
        _WARPS_OF_SM // warps,
        _REGISTERS_OF_SM // of_warp // warps,
        _SHARED_OF_SM[target] // (-(-shared // 1024) * 1024 + 1024),  # 1 KiB is the system's
    )
    return 100 * blocks * warps // _WARPS_OF_SM


def table() -> str:
    """The whole of docs/kernel_resources.md."""
    names = [field.name for field in fields(Resources)]
    tasks = [(at, target) for at in range(len(launches())) for target in TARGETS]
    with ProcessPoolExecutor() as processes:
        rows = list(processes.map(_measure, tasks))
    lines = [
        "# What the Triton kernels cost",
        "",
        "Compiled at the launches of the 1.5B model and read from the machine code: see",
        "`kernels/triton_impl/aot.py`. `python -m kernels.triton_impl.aot` writes the table, the",
        "tests compare it. Stack and shared memory in bytes, registers a thread, occupancy in %.",
        "",
        f"triton {triton.__version__}",
        "",
        "| " + " | ".join(name.replace("_", " ") for name in names) + " |",
        "|---|---|" + "---:|" * (len(names) - 2),
        *("| " + " | ".join(str(getattr(row, name)) for name in names) + " |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    (Path(sys.argv[1]) if sys.argv[1:] else TABLE).write_text(table())
