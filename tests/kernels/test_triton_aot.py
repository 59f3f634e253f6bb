"""What the Triton kernels compile to for sm_80, sm_90 and sm_100: gates, and the committed table.

Compiling needs no GPU. It runs in a process of its own, as TRITON_INTERPRET must not be set and
triton need not be loaded into the tests' process.
"""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "docs" / "kernel_resources.md"
SHARED = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024}
# Registers a thread. 80 let 24 warps of a multiprocessor's 64 run, 64 let 32 and 40 let 48: enough
# to hide memory latency. The sampler computes more than it loads.
BUDGET = {
    "logprob_forward": 80,
    "logprob_backward": 64,
    "rms_norm_forward": 40,
    "rms_norm_backward": 80,
    "column_sums": 48,
    "rope": 48,
    "swiglu_forward": 40,
    "swiglu_backward": 40,
    "paged_decode_attention": 96,
    "sample_tokens": 128,
    "count_lengths": 40,
    "lcpo_advantage": 64,
    "adamw_split": 48,
    "policy_loss": 72,
    "policy_loss_sums": 40,
}
# Bound by memory, so their loads must be 128 bits wide. The others read some kilobytes.
STREAMING = {*BUDGET} - {"count_lengths", "lcpo_advantage", "policy_loss", "policy_loss_sums"}


def run(*command):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT)
    ran = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def rows_of(text):
    """Rows of the table as dicts; numbers as int."""
    lines = [
        [x.strip() for x in line.split("|")[1:-1]] for line in text.splitlines() if "|" in line
    ]
    names, _, *rows = lines
    return [
        {k: int(v) if v.isdigit() else v for k, v in zip(names, row, strict=True)} for row in rows
    ]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("aot") / "table.md"
    run("-m", "kernels.triton_impl.aot", str(path))
    return path.read_text()


def test_every_kernel_is_compiled_for_every_target(text):
    sources = (ROOT / "kernels" / "triton_impl").glob("*.py")
    written = {k for f in sources for k in re.findall(r"^def (\w+)_kernel\(", f.read_text(), re.M)}
    assert written == {*BUDGET}
    found = {(row["kernel"].split()[0], row["target"]) for row in rows_of(text)}
    assert found == {(kernel, target) for kernel in BUDGET for target in SHARED}


def test_gates(text):
    for row in rows_of(text):
        kernel = row["kernel"].split()[0]
        assert row["stack"] == row["spills"] == row["fp64"] == 0, row
        assert row["shared"] <= SHARED[row["target"]], row
        assert row["registers"] <= BUDGET[kernel], row
        assert row["loads 128"] > 0 or kernel not in STREAMING, row


def test_table_is_committed(text):
    committed = TABLE.read_text()
    of = re.search(r"^triton (\S+)$", committed, re.M)[1]
    if of != version("triton"):
        pytest.skip(f"the table is of triton {of}, installed is {version('triton')}")
    assert text == committed, "run `python -m kernels.triton_impl.aot` and commit the table"


BROKEN = """
import dataclasses, json
import torch, triton
import triton.language as tl
from kernels.triton_impl import aot

@triton.jit
def double_kernel(x, factor: tl.constexpr):
    at = x + tl.arange(0, 128)
    tl.store(at, (tl.load(at).to(tl.float64) * factor).to(tl.float32))

def row(launch):
    return dataclasses.asdict(aot.measure(launch, 90))

whole = next(x for x in aot.launches() if x.name == "logprob_forward bf16")
starved = dataclasses.replace(whole, settings=whole.settings | {"maxnreg": 24})
shifted = torch.empty(4096, 151_937, device="meta", dtype=torch.bfloat16)
rows = (shifted, shifted.stride(0), *whole.arguments[2:])
narrow = dataclasses.replace(whole, arguments=rows)
x = torch.empty(128, device="meta")
double = aot.Launch("double", double_kernel, (x,), {"factor": 1.1})
print(json.dumps([row(starved), row(narrow), row(double)]))
"""


def test_a_wrong_kernel_is_found(tmp_path):
    """Too few registers, rows whose stride rules wide loads out, and float64."""
    script = tmp_path / "broken.py"
    script.write_text(BROKEN)
    starved, narrow, double = json.loads(run(str(script)))
    assert starved["spills"] > 0 and starved["stack"] > 0
    assert narrow["loads_128"] == 0 and narrow["spills"] == 0
    assert double["fp64"] > 0
