"""T17: ten tiny steps give the committed numbers.

Within 1e-5, not bit for bit: another CPU, or another version of torch, may sum in another order.
The numbers are of the torch backend; tests/kernels says what the compiled library may differ by.
"""

from __future__ import annotations

import json

import pytest

from tests.numerics.golden import FILE, METRICS, STEPS, golden_rows


@pytest.fixture(scope="module")
def committed() -> list[dict[str, float]]:
    return json.loads(FILE.read_text(encoding="utf-8"))


def test_t17_ten_steps_give_the_committed_numbers(committed):
    found = golden_rows()
    for number, (row, expected) in enumerate(zip(found, committed, strict=True), start=1):
        assert row == pytest.approx(expected, rel=1e-5, abs=1e-7), f"step {number}"


def test_the_committed_numbers_are_of_a_run_that_learns(committed):
    """They could not tell a broken step from a good one if nothing moved."""
    assert len(committed) == STEPS
    for name in METRICS:
        assert len({row[name] for row in committed}) > STEPS // 2


def test_t17_a_slightly_wrong_step_would_show(committed):
    (found,) = golden_rows("rollout.temperature=0.6001", steps=1)
    assert found != pytest.approx(committed[0], rel=1e-5, abs=1e-7)
