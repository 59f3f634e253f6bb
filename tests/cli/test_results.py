"""`python -m trainer.results --quick` from the tiny base to its document, twice."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from matplotlib.image import imread

from tests.helpers import TINY
from trainer.config import ConfigError
from trainer.results import stages
from trainer.results.__main__ import main
from trainer.results.plan import Stage

CHANGES = [c for c in TINY if c.startswith(("rollout.", "threads", "data.", "budget.", "train."))]


def run(base: Path, folder: Path, *more: str) -> int:
    options = ["--root", str(folder / "runs"), "--out", str(folder / "results.md"),
               "--model", str(base), "--quick", "--problems", "6", *more]  # fmt: skip
    return main([*options, *CHANGES, "budget.max=128", "rollout.max_response_tokens=128",
                 "train.micro_batch_tokens=400", "train.steps=2"])  # fmt: skip


@pytest.fixture(scope="module")
def finished(tiny_base, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    assert run(tiny_base, folder) == 0
    return folder


def test_the_document_states_every_claim_with_table_plot_and_commands(finished):
    text = (finished / "results.md").read_text()
    verdicts = re.findall(r"^\| (\d) \| .* \| \*\*[01] of 1\*\* \| .*met.* \|$", text, re.MULTILINE)
    assert verdicts == list("123456")
    assert "no result" in text  # it was a quick one
    for heading in ("base model, no budget", "S1 budget forcing", "**L1-Exact**", "**L1-Max**",
                    "Out of distribution", "Behaviour", "Commands"):  # fmt: skip
        assert heading in text
    assert "python -m trainer.run +experiment=l1_max" in text
    for plot in ("results.png", "results_outside.png"):
        assert f"({plot})" in text and imread(finished / plot).shape[1] > 1000
    assert "nan" not in text


def test_again_nothing_is_run_and_the_document_is_the_same(finished, tiny_base, monkeypatch):
    before = (finished / "results.md").read_text()
    monkeypatch.setattr(stages, "subprocess", None)
    assert run(tiny_base, finished) == 0
    assert (finished / "results.md").read_text() == before


def test_other_settings_under_the_same_root_are_refused(finished, tiny_base, capsys):
    assert run(tiny_base, finished, "--samples", "3") == 2
    assert "choose another --root" in capsys.readouterr().err


def test_wrong_budgets_are_named(tiny_base, tmp_path, capsys):
    assert run(tiny_base, tmp_path, "--budgets", "16,x") == 2
    assert run(tiny_base, tmp_path, "--budgets", "16,32") == 2
    said = capsys.readouterr().err
    assert "got 16,x" in said and "expected four, ascending, got [16, 32]" in said


def test_a_stage_that_fails_ends_the_others(tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\n[ "$3" = fail ] && exit 3\nexec sleep 3600\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    first, failing, last = (
        Stage("train", tmp_path / name, (name,)) for name in ("first", "fail", "last")
    )
    with pytest.raises(ConfigError, match=r"trainer\.run ended with 3"):
        stages.run_chains([[first], [failing], [last]], 2)
    assert not last.log.exists()  # the failing one's worker was free for it


def test_a_training_that_fails_is_said(tiny_base, tmp_path, capfd):
    assert run(tiny_base, tmp_path, "optim.lr=-1") == 2
    said = capfd.readouterr().err
    assert "optim.lr: must be more than 0" in said and "trainer.run ended with 2" in said
