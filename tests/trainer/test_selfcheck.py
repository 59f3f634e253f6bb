"""The self-check of a run: it fires for a wrong kernel, and for nothing else."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import torch

from kernels import dispatch
from tests.helpers import tiny_trainer
from trainer import selfcheck, step

ON = ("train.self_check_every=1",)


@contextlib.contextmanager
def broken(op: str, damage: Callable[[Any], Any]) -> Iterator[None]:
    """`op` chooses a backend with a wrong result; "torch" stays, as it is what is compared to."""
    right = dispatch.IMPLEMENTATIONS[op]["torch"]
    both = {"cpp": lambda *a, **k: damage(right(*a, **k)), "torch": right}
    automatic = dispatch._automatic

    def choose(name: str, *rest: Any) -> str:
        return "cpp" if name == op else automatic(name, *rest)

    with (
        mock.patch.dict(dispatch.IMPLEMENTATIONS, {op: both}),
        mock.patch.object(dispatch, "_automatic", choose),
    ):
        yield


def scaled(result: Any) -> Any:
    """A result, or the first of several, that is 1% too large."""
    return (result[0] * 1.01, *result[1:]) if isinstance(result, tuple) else result * 1.01


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_right_kernels_pass(dtype, tiny_base):
    trainer = tiny_trainer(tiny_base, *ON, f"model.dtype={dtype}")
    with mock.patch.object(selfcheck, "BOUNDS", {"float32": 1e-4, "bfloat16": 0.3}):
        step.train_step(trainer)
        step.train_step(trainer)


def test_it_recomputes_what_it_compares(tiny_base):
    """With no room at all even rounding is seen, so the two are not one computation."""
    trainer = tiny_trainer(tiny_base, *ON, "model.dtype=bfloat16")
    with (
        mock.patch.object(selfcheck, "BOUNDS", {"bfloat16": 0.0}),
        pytest.raises(FloatingPointError, match="self-check"),
    ):
        step.train_step(trainer)


# In the head, NaN there, and in a layer.
@pytest.mark.parametrize(
    ("op", "damage"),
    [
        ("linear_logprob", scaled),
        ("linear_logprob", lambda out: (out[0] * torch.nan, *out[1:])),
        ("rms_norm", scaled),
    ],
)
def test_a_wrong_kernel_stops_the_run(op, damage, tiny_base):
    trainer = tiny_trainer(tiny_base, *ON)
    with (
        broken(op, damage),
        pytest.raises(FloatingPointError, match=r"response token \d+ .* torch reference"),
    ):
        step.train_step(trainer)
    assert trainer.step == 0  # nothing was learnt from it


def test_it_runs_every_so_many_steps(tiny_base):
    def checked(every: int) -> list[int]:
        trainer = tiny_trainer(tiny_base, f"train.self_check_every={every}")
        found = []
        with mock.patch.object(selfcheck, "first_sequence", wraps=selfcheck.first_sequence) as spy:
            for number in range(4):
                before = spy.call_count
                step.train_step(trainer)
                found += [number] if spy.call_count > before else []
        return found

    assert checked(0) == []
    assert checked(3) == [0, 3]


def test_nothing_to_check_when_all_samples_were_dropped(tiny_base):
    trainer = tiny_trainer(tiny_base, *ON)
    selfcheck.self_check(trainer, [[], []], mock.Mock(side_effect=AssertionError))
