"""T26: a command line that cannot work is refused with the key or file named, before a model loads.

Each case is the real command in a process of its own that would exit with 99 at the first weight.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.helpers import ROOT, command, run_process

SETTINGS = [
    ("+bogus=1", "bogus: no such setting"),
    ("+optim.bogus=1", "optim.bogus: no such setting"),
    ("bogus=1", "bogus"),  # without the plus it is hydra that refuses
    ("optim.lr=nan", "optim.lr: nan is not a finite number"),
    ("optim.lr=-1", "optim.lr: must be more than 0, got -1"),
    ("optim.lr=null", "optim.lr: expected float, got None"),
    ("optim.lr=fast", "optim.lr: expected float, got 'fast'"),
    ("rollout.samples=1", "rollout.samples: a group of 1 has no spread"),
    ("rollout.prompts=3", "algorithm.updates: 2 "),
    ("budget.max=21", "budget.max: 21 cannot be reached with rollout.max_response_tokens=20"),
    ("train.micro_batch_tokens=50", "train.micro_batch_tokens: 50 is below"),
    ("+model._target_=os.system", "model._target_: no such setting"),
    ("budget=other", "budget/other"),
    ("scale=huge", "scale: 'huge' is not one of auto, embedded, paper"),
    ("+=", "+=: a setting without a name; expected NAME=VALUE"),
]


def refused(log: Path, arguments: list[str]) -> str:
    """What the command said; it must have exited with an error and without a traceback."""
    done = run_process(log, arguments, may_load=False)
    assert done.code in (1, 2), done
    assert "Traceback" not in done.output
    return done.output


@pytest.mark.parametrize(("change", "message"), SETTINGS, ids=[change for change, _ in SETTINGS])
def test_t26_a_setting_that_cannot_work_is_named(change, message, tiny_base, tmp_path):
    output = refused(tmp_path / "log", command(tiny_base, tmp_path / "run", change))
    assert message in output
    assert not (tmp_path / "run").exists()


def test_t26_an_experiment_that_does_not_exist_is_named(tiny_base, tmp_path):
    arguments = command(tiny_base, tmp_path / "run")
    arguments[arguments.index("+experiment=l1_exact")] = "+experiment=l2_exact"
    assert "experiment/l2_exact" in refused(tmp_path / "log", arguments)


def test_the_paper_scale_needs_its_device(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    output = refused(tmp_path / "log", ["+experiment=l1_exact", "scale=paper"])
    assert "scale: paper needs a CUDA device" in output
    assert "scale=embedded" in output  # what to do


def test_a_good_command_line_would_load_the_model(tiny_base, tmp_path):
    """The control: the processes above could have got as far as that."""
    done = run_process(tmp_path / "log", command(tiny_base, tmp_path / "run"), may_load=False)
    assert done.code == 99, done.output


# Files


def test_a_missing_model_folder_is_named(tmp_path):
    folder = tmp_path / "no" / "model"
    output = refused(tmp_path / "log", command(folder, tmp_path / "run"))
    assert f"model.path: no such folder: {folder}" in output


def test_a_model_folder_without_tokenizer_json_is_named(tiny_base, tmp_path):
    folder = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    (folder / "tokenizer.json").unlink()
    output = refused(tmp_path / "log", command(folder, tmp_path / "run"))
    assert f"model.path: {folder} has no tokenizer.json" in output


@pytest.mark.parametrize("key", ["data.train", "data.heldout"])
def test_a_bad_row_of_a_data_file_is_named_with_its_line(key, tiny_base, tmp_path):
    file = tmp_path / "sums.jsonl"
    good = json.dumps({"problem": "1+1=?", "answer": "2"})
    file.write_text(f'{good}\n{good}\n{{"problem": "1+2=?"}}\n{good}\n')
    output = refused(tmp_path / "log", command(tiny_base, tmp_path / "run", f"{key}={file}"))
    assert f"{file}:3" in output
    assert "answer" in output


def test_a_missing_data_file_is_named(tiny_base, tmp_path):
    file = tmp_path / "none.jsonl"
    output = refused(tmp_path / "log", command(tiny_base, tmp_path / "run", f"data.train={file}"))
    assert str(file) in output


def test_a_missing_checkpoint_is_named(tiny_base, tmp_path):
    """It is looked for once the model is there, which it belongs to."""
    arguments = command(
        tiny_base, tmp_path / "run", f"resume.checkpoint={tmp_path / 'step-00000009'}"
    )
    done = run_process(tmp_path / "log", arguments)
    assert done.code == 1
    assert "step-00000009" in done.output
    assert "Traceback" not in done.output


def test_python_m_says_the_same(tmp_path):
    """Once through the interpreter's own command line, for what a forked process cannot show."""
    done = subprocess.run(
        [sys.executable, "-m", "trainer.run", "+experiment=l1_exact", "scale=embedded", "+bogus=1"],
        capture_output=True, text=True, timeout=60, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 2
    assert "bogus: no such setting" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
