"""The rollout bench end to end on a tiny model: all its figures, and that they are sane."""

from __future__ import annotations

import csv

import pytest

from bench import rollout


@pytest.fixture(scope="module")
def figures(tiny_base, tmp_path_factory):
    out = tmp_path_factory.mktemp("bench")
    rollout.main([str(tiny_base), "--quick", "--out", str(out)])
    with (out / "bench" / "rollout.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["model"] for row in rows} == {tiny_base.name}
    return {row["figure"]: float(row["value"]) for row in rows}


def test_every_comparison_of_the_bench_is_there(figures):
    assert len(figures) == 16
    others = [rate for name, rate in figures.items() if "tokens/s, generate" in name]
    gain = figures["tokens/s, times the best generate"]
    assert gain == pytest.approx(figures["tokens/s, ours"] / max(others), rel=1e-2)
    assert figures["small pool: requests that differ from a large pool's"] == 0
    assert figures["decode step, ms"] > figures["decode step, floor ms"] > 0


def test_both_sides_draw_the_same_number_of_tokens(tiny_base):
    """Each row of `generate` ends at its own length, whatever the batch."""
    subject = rollout.load(str(tiny_base), "float32", rollout.QUICK)
    requests = subject.requests(6)
    ours = subject.engine().generate(requests, rollout.WARM)
    assert [len(c.token_ids) for c in ours] == [r.max_new_tokens for r in requests]
    ends = rollout.OwnLength(3, [2, 4])
    seen = [ends(rollout.torch.zeros(2, n), None).tolist() for n in (4, 5, 7)]
    assert seen == [[False, False], [True, False], [True, True]]
