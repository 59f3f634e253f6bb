"""The bench of exact rollouts end to end on a tiny model."""

from __future__ import annotations

import re

import pytest
import torch

import kernels
from bench import exact

SMALL = ("rollout.prompts=2", "rollout.samples=3", "rollout.max_response_tokens=12", "seed=1")


def test_both_sides_step_and_the_ratio_is_theirs(tiny_base, capsys):
    if kernels.active_backends()["linear"] != "cpp":
        pytest.skip("the compiled library is not built")
    before = torch.get_num_threads()
    exact.main(["--model", str(tiny_base), "--rounds", "2", *SMALL, "budget.max=12"])
    torch.set_num_threads(before)
    text = capsys.readouterr().out
    took = {
        name: [float(s) for s in re.findall(rf"round [12], {name}: ([\d.]+) s", text)]
        for name in ("default", "exact")
    }
    assert all(len(found) == 2 for found in took.values())
    assert re.search(r"^exact: [\d.]+ s a step, gap at most 0$", text, re.M)
    assert re.search(r"^cost of batch_invariant, times a default step: [\d.]+ \(", text, re.M)
