"""Which backend runs: automatic, explicit, and what is said when it cannot."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import kernels
from kernels import cpp_impl, dispatch
from kernels.cpp_impl import loading
from kernels.implementations import HALF_LAYERS
from kernels.torch_ref.sample_tokens import sample_tokens

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def fresh():
    """Forgets, before and after, which library was found and what was said."""
    cached = (loading.library, loading.why_missing, loading._load, dispatch._automatic)
    cached = (*cached, dispatch._tell_if_missing)
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


def test_automatic_choice(cpp):
    chosen = kernels.active_backends()
    assert set(chosen) == set(dispatch.IMPLEMENTATIONS)
    assert {op for op in chosen if chosen[op] != "cpp"} == set(HALF_LAYERS)  # bfloat16 only
    cuda = kernels.active_backends("cuda")
    assert {op for op in cuda if cuda[op] == "cuda"} == {
        "varlen_attention",
        "varlen_attention_backward",
    }
    assert all((cuda[op] == "triton") == ("triton" in dispatch.IMPLEMENTATIONS[op]) for op in cuda)
    assert "triton" not in kernels.active_backends("cuda", torch.float64).values()
    assert kernels.active_backends(dtype=torch.float64)["linear_logprob"] == "torch"


def test_override_of_all_and_of_one_op(cpp):
    with kernels.override("torch"):
        assert set(kernels.active_backends().values()) == {"torch"}
        with kernels.override("sample_tokens=cpp, count_lengths=torch"):
            chosen = kernels.active_backends()
            assert chosen["sample_tokens"] == "cpp" and chosen["linear_logprob"] == "torch"
        assert dispatch.select("sample_tokens", CPU, torch.float32) is sample_tokens
    assert kernels.active_backends()["sample_tokens"] == "cpp"


def test_t28_explicit_choice_that_cannot_run():
    with (
        kernels.override("cpp"),
        pytest.raises(
            ValueError, match=r"'cpp' cannot run rms_norm on cpu with torch\.float64;.*: torch$"
        ),
    ):
        kernels.rms_norm(torch.ones(2, 8).double(), torch.ones(8), 1e-6)
    with (
        kernels.override("sample_tokens=cpp"),
        pytest.raises(ValueError, match="cannot run sample_tokens on cuda"),
    ):
        dispatch.select("sample_tokens", torch.device("cuda"), torch.float32)
    with (
        kernels.override("sample_tokens=triton"),
        pytest.raises(ValueError, match=r"'triton' cannot run sample_tokens on cpu"),
    ):
        dispatch.select("sample_tokens", CPU, torch.float32)


def test_without_triton_cuda_takes_torch(monkeypatch):
    dispatch._triton_runs.cache_clear()
    monkeypatch.setattr(dispatch.importlib.util, "find_spec", lambda name: None)
    assert dispatch._able("sample_tokens", "cuda", torch.float32) == ["torch"]
    dispatch._triton_runs.cache_clear()


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (
            "numpy",
            r"unknown backend 'numpy' in choice 'numpy'; there are \('cuda', 'triton'",
        ),
        ("sample=torch", "unknown op 'sample'"),
        ("sample_tokens=", "unknown backend ''"),
    ],
)
def test_unknown_names(choice, message):
    with pytest.raises(ValueError, match=message), kernels.override(choice):
        pass


def test_override_ends_with_an_exception():
    before = kernels.active_backends()
    with pytest.raises(KeyError), kernels.override("torch"):
        raise KeyError
    assert kernels.active_backends() == before


@pytest.mark.parametrize(("choice", "code"), [("torch", 0), ("nonsense", 1)])
def test_environment(choice, code):
    ran = subprocess.run(
        [sys.executable, "-c", "import kernels; print(set(kernels.active_backends().values()))"],
        env={"LCPO_BACKEND": choice, "PATH": ""},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == code, ran.stderr
    assert ran.stdout == "{'torch'}\n" if code == 0 else "unknown backend 'nonsense'" in ran.stderr


def test_t28_missing_library_is_told_once_and_all_runs(fresh, monkeypatch, tmp_path, caplog):
    """T28: without the compiled library all ops run; one line says so and how to build it."""
    monkeypatch.setattr(loading, "PATH", tmp_path / loading.PATH.name)
    with caplog.at_level(logging.WARNING, "kernels"):
        assert set(kernels.active_backends().values()) == {"torch"}
        for _ in range(2):
            kernels.sample_tokens(
                torch.zeros(1, 8),
                temperature=1.0,
                seeds=torch.tensor([1]),
                positions=torch.tensor([0]),
            )
    assert [r.message.count("\n") for r in caplog.records] == [0]
    assert "pip install -e ." in caplog.text
    with (
        kernels.override("count_lengths=cpp"),
        pytest.raises(ValueError, match="can run on: torch"),
    ):
        dispatch.select("count_lengths", CPU, torch.int64)


def test_t28_unusable_library_says_why(fresh, monkeypatch, tmp_path):
    broken = tmp_path / loading.PATH.name
    broken.write_bytes(b"not a library")
    monkeypatch.setattr(loading, "PATH", broken)
    assert "does not load" in cpp_impl.why_missing() and cpp_impl.library() is None


def test_library_of_another_version_is_refused(fresh, monkeypatch, cpp):
    loading.why_missing.cache_clear()
    monkeypatch.setattr(loading, "ABI_VERSION", loading.ABI_VERSION + 1)
    assert f"of interface {loading.ABI_VERSION - 1}, this code" in cpp_impl.why_missing()
