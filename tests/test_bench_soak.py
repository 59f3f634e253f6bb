"""The soak test itself: a short one passes, and a leak would be seen."""

from __future__ import annotations

import random
import signal
from types import SimpleNamespace

import pytest
from matplotlib.image import imread

from bench import soak


@pytest.fixture
def quiet_signals():
    """A run takes over two signals, which are pytest's."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_short_one(quiet_signals, tiny_base, tmp_path, monkeypatch):
    """With all faults often; resident memory of so few steps says nothing."""
    monkeypatch.setattr(soak, "MAX_GROWTH", 1.0)
    monkeypatch.setattr(soak, "NAN", 0.2)
    monkeypatch.setattr(soak, "NO_MEMORY", 0.2)
    monkeypatch.setattr(soak, "DISK_FULL", 0.5)
    settings = [f"model.path={tiny_base}", "checkpoint.every=2", "log.tensorboard=false"]
    assert soak.main(["--steps", "20", "--out", str(tmp_path), *settings]) == 0
    text = (tmp_path / "soak.md").read_text()
    for fault in ("NaN gradient", "out of memory", "disk full", "preempted samples"):
        assert f"| {fault} | " in text
    assert "| 20 rows |" in text and "NO" not in text
    assert imread(tmp_path / "soak.png").shape[1] > 600


@pytest.mark.parametrize(("leak", "name"), [(0, "threads"), (2, "open files"), (3, "pages held")])
def test_a_leak_would_be_seen(leak, name, tmp_path):
    seen = soak.Soak(random.Random(0))
    seen.resident = [100.0 + step for step in range(100)]
    seen.held = [tuple(step * (place == leak) for place in range(4)) for step in range(100)]
    (tmp_path / soak.METRICS).touch()
    run = SimpleNamespace(
        folder=tmp_path,
        checkpoints=tmp_path / "none",
        trainer=SimpleNamespace(optimizer=SimpleNamespace(skipped=0)),
    )
    failed = [what for what, _, ok in soak.checks(seen, run, 100) if not ok]
    assert [what.partition(" ")[0] for what in failed[:3]] == ["resident", "metrics.jsonl", "the"]
    assert failed[3:] == [f"no more {name} at the end"]
