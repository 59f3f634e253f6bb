"""Fixtures of the kernel tests: which backend an op runs on."""

from collections.abc import Iterator

import pytest

import kernels
from kernels import cpp_impl, dispatch


@pytest.fixture(params=["torch", "cpp"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once on each backend, for the ops that have both; all else stays on torch."""
    if request.param == "cpp" and cpp_impl.library() is None:
        pytest.skip(cpp_impl.why_missing())
    ops = [op for op, backends in dispatch.IMPLEMENTATIONS.items() if "cpp" in backends]
    with kernels.override(",".join(f"{op}={request.param}" for op in ops)):
        yield request.param


@pytest.fixture
def cpp() -> None:
    """Skips, visibly, where the compiled library is not built."""
    if cpp_impl.library() is None:
        pytest.skip(cpp_impl.why_missing())
