"""The adapter for vLLM against a stub of the package that draws with our own engine."""

from __future__ import annotations

import sys

import pytest
import vllm_stub
from rollout_helpers import EOS, IDS, WARM

from tests.helpers import one_thread, result, run_here, tiny_decoder, tiny_trainer, write_tiny_base
from trainer.config import ConfigError
from trainer.record import METRICS
from trainer.rollout import Forced, Forcing, Request
from trainer.rollout.vllm import VllmEngine


@pytest.fixture
def stub(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", vllm_stub)
    monkeypatch.setattr(vllm_stub.LLM, "made", [])
    return vllm_stub


def test_a_run_is_that_of_our_own_engine(stub, tmp_path):
    """Bit for bit, over steps that change the weights: they arrive, and nothing stale is used."""
    base = write_tiny_base(tmp_path / "base")
    with one_thread():
        runs = [
            result(
                run_here(base, tmp_path / name, f"rollout.engine={name}", "train.steps=2").folder
            )
            for name in ("own", "vllm")
        ]
    own, theirs = ({**run, METRICS: None} for run in runs)  # it has rollout statistics
    assert own == theirs
    (settings,) = stub.LLM.made
    assert settings["max_model_len"] >= 20 and settings["load_format"] == "dummy"


def test_forced_text_is_refused(stub, tmp_path):
    folder = write_tiny_base(tmp_path)
    engine = VllmEngine(
        tiny_decoder(), folder, eos_id=EOS, vocab_size=IDS, batch_size=4, longest=40
    )
    forced = Request((17,), 1, 9, forcing=Forcing(4, (), lambda ids: Forced((91,), 2)))
    with pytest.raises(ValueError, match="cannot force text"):
        engine.generate([Request((17,), 0, 9), forced], WARM)
    assert engine.generate([], WARM) == []


def test_without_the_package_the_setting_is_refused(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "vllm", None)
    base = write_tiny_base(tmp_path)
    with pytest.raises(ConfigError, match=r"^rollout\.engine: .*pip install vllm"):
        tiny_trainer(base, "rollout.engine=vllm")
