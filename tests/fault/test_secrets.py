"""No value of a secret environment variable comes into a run folder, a log or a report."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers import command, run_process
from trainer.report.__main__ import main as report

QUIET = ("train.steps=1", "evaluate.every=0", "log.tensorboard=true")
SECRETS = {
    "HF_TOKEN": "hf_Xq81TsecretA",
    "WANDB_API_KEY": "Xq82KsecretB",
    "OPENAI_API_KEY": "sk-Xq83KsecretC",
    "AWS_SECRET_ACCESS_KEY": "Xq84SsecretD",
    "SOME_SERVICE_PASSWORD": "Xq85PsecretE",
}


def leaks(folder: Path) -> list[str]:
    """ "file: variable" for each secret in the files below, in names too."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [
        f"{path}: {name}"
        for path in files
        for name, value in SECRETS.items()
        if value.encode() in path.read_bytes() or value in str(path)
    ]


@pytest.mark.parametrize("fails", [False, True], ids=["complete", "failed"])
def test_secrets_stay_in_the_environment(fails, tiny_base, tmp_path):
    """Also where a run ends in an error, whose trace shows what the functions were given."""
    changes = (*QUIET, "checkpoint.max_failures=1") if fails else QUIET
    if fails:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "checkpoints").write_text("not a folder")
    done = run_process(
        tmp_path / "log", command(tiny_base, tmp_path / "run", *changes), environment=SECRETS
    )
    assert done.code == (1 if fails else 0), done.output
    assert leaks(tmp_path) == []


def test_secrets_stay_out_of_the_report(tiny_base, tmp_path, monkeypatch):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    run = tmp_path / "run"
    done = run_process(tmp_path / "log", command(tiny_base, run, *QUIET), environment=SECRETS)
    assert done.code == 0, done.output
    assert report([str(run), "--out", str(tmp_path / "report")]) == 0
    assert (tmp_path / "report" / "report.html").stat().st_size > 10_000
    assert leaks(tmp_path) == []


def test_a_leak_would_be_found(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "log.bin").write_bytes(b"\0\xff" + SECRETS["HF_TOKEN"].encode() + b"\0")
    assert leaks(tmp_path) == [f"{tmp_path}/a/log.bin: HF_TOKEN"]
