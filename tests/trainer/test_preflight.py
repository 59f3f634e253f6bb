"""The pre-flight: what cannot work is refused by name before a run is paid for."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

import kernels
from tests.helpers import run_here, tiny_config
from trainer import preflight
from trainer.config import ConfigError
from trainer.embedded.task import split_of
from trainer.preflight import (
    build_trainer,
    check_packages,
    environment,
    find_model,
    load_data,
    load_tokenizer,
    resolve_device,
)


def copy_base(base: Path, target: Path) -> Path:
    return Path(shutil.copytree(base, target))


# Model and tokenizer


def test_model_path_may_be_a_folder_or_a_run(tiny_base, tmp_path):
    assert find_model(str(tiny_base)) == tiny_base
    assert find_model("embedded").parts[-3:] == ("trainer", "embedded", "base")
    run_here(tiny_base, tmp_path / "run", "train.steps=2", "checkpoint.every=1", "evaluate.every=0")
    found = find_model(str(tmp_path / "run"))
    assert found == tmp_path / "run" / "checkpoints" / "step-00000002"
    build_trainer(tiny_config(found, tmp_path / "next"))  # L1-Max starts so


def test_a_run_that_is_not_there_yet_says_how_to_get_one(monkeypatch, tmp_path):
    """What +experiment=l1_max meets where no L1-Exact has been trained."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"trainer\.run \+experiment=l1_exact"):
        find_model("runs/l1_exact-embedded")


@pytest.mark.parametrize("path", ["/no/such/folder", "runs/no/such", "nowhere", "./a/b"])
def test_a_missing_model_folder_is_named(path):
    with pytest.raises(ConfigError, match=rf"^model\.path: no such folder: {path}"):
        find_model(path)


def test_a_run_without_a_checkpoint_is_no_model(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ConfigError, match=r"^model\.path: .*no complete checkpoint"):
        find_model(str(tmp_path))


@pytest.mark.parametrize(
    ("key", "complaint"), [("eos_token", "no EOS token"), ("chat_template", "no chat template")]
)
def test_a_tokenizer_that_cannot_serve_is_refused(key, complaint, tiny_base, tmp_path):
    folder = copy_base(tiny_base, tmp_path / "base")
    (folder / "chat_template.jinja").unlink()
    if key != "chat_template":
        file = folder / "tokenizer_config.json"
        content = json.loads(file.read_text())
        del content[key]
        file.write_text(json.dumps(content | {"chat_template": "{{ messages }}"}))
    with pytest.raises(ConfigError, match=rf"^model\.path: .*{complaint}"):
        load_tokenizer(folder)


def test_tokenizer_json_is_taken_as_it_stands(tiny_base):
    """AutoTokenizer would rebuild the pre-tokenizer; the ids of `</think>` come from the file."""
    tokenizer, think_end = load_tokenizer(tiny_base)
    plain = PreTrainedTokenizerFast(tokenizer_file=str(tiny_base / "tokenizer.json"))
    text = "3+14=17\n\u00e9 wait </think>\\boxed{17}"
    assert tokenizer.encode(text) == plain.encode(text)
    assert tokenizer.decode(list(think_end)) == "</think>"


# Data and device


def test_the_heldout_half_of_the_embedded_task_is_disjoint(tiny_base, tmp_path):
    config = tiny_config(tiny_base, tmp_path, "data.embedded_rows=200", "evaluate.problems=30")
    train = load_data(config.data, "embedded", "train", config.seed)
    _, heldout = build_trainer(config)
    assert len(train) == 200 and len(heldout) == 30
    numbers = [
        [int(n) for n in p.question.removesuffix("=?").split("+")] for p in (*train, *heldout)
    ]
    assert {split_of(n) for n in numbers[:200]} == {"train"}
    assert {split_of(n) for n in numbers[200:]} == {"heldout"}


def test_data_files_are_read_with_the_configured_keys(tiny_base, tmp_path):
    file = tmp_path / "sums.jsonl"
    file.write_text('{"q": "1+1=?", "a": "2"}\n{"q": "2+2=?", "a": "4"}\n')
    config = tiny_config(
        tiny_base, tmp_path / "run", f"data.train={file}", f"data.heldout={file}",
        "data.question_key=q", "data.answer_key=a", "evaluate.problems=1",
    )  # fmt: skip
    trainer, heldout = build_trainer(config)
    assert [p.question for p in trainer.stream.problems] == ["1+1=?", "2+2=?"]
    assert [p.answers for p in heldout] == [("2",)]  # evaluate.problems of them


def test_auto_takes_what_the_machine_has(tiny_base, tmp_path, monkeypatch):
    config = tiny_config(tiny_base, tmp_path, "model.device=cpu")
    auto = dataclasses.replace(
        config, model=dataclasses.replace(config.model, device="auto", dtype="auto")
    )
    for cuda in (False, True):
        for low, dtype in ((False, "float32"), (True, "bfloat16")):
            monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
            monkeypatch.setattr(preflight, "has_bfloat16", lambda device, low=low: low)
            found = resolve_device(auto).model
            assert (found.device, found.dtype) == ("cuda" if cuda else "cpu", dtype)


def test_cuda_without_a_device_is_refused(tiny_base, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"^model\.device: cuda asked for"):
        tiny_config(tiny_base, tmp_path, "model.device=cuda")


# The parts of the run


def test_the_reference_is_the_frozen_start(tiny_base, tmp_path):
    trainer, _ = build_trainer(tiny_config(tiny_base, tmp_path))
    assert trainer.reference is not trainer.model
    assert not any(p.requires_grad for p in trainer.reference.parameters())
    for ours, theirs in zip(
        trainer.model.parameters(), trainer.reference.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs) and ours.data_ptr() != theirs.data_ptr()
    trainer, _ = build_trainer(tiny_config(tiny_base, tmp_path, "algorithm.kl_coef=0"))
    assert trainer.reference is None


def test_masters_are_float32_and_the_reference_computes_as_told(tiny_base, tmp_path):
    trainer, _ = build_trainer(tiny_config(tiny_base, tmp_path, "model.dtype=bfloat16"))
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    assert {p.dtype for p in trainer.reference.parameters()} == {torch.bfloat16}


def test_t28_a_foreign_kernels_package_is_told_of(monkeypatch):
    check_packages()
    monkeypatch.setattr(kernels, "__file__", "/usr/lib/python3/kernels/__init__.py")
    with pytest.raises(ConfigError, match="pip uninstall kernels"):
        check_packages()


def test_the_environment_names_versions_and_backends():
    found = environment()
    assert found["torch"] == torch.__version__
    assert found["kernels"] == kernels.active_backends()
    json.dumps(found, allow_nan=False)
