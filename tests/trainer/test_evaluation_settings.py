"""The settings of python -m trainer.evaluate: defaults by scale, and every wrong value by name."""

import dataclasses

import pytest
import yaml

from trainer.config import ConfigError
from trainer.evaluate.settings import read_settings
from trainer.files import write_json_atomic
from trainer.settings import CONF

WRONG = [
    ("bogus=1", "bogus"),
    ("+bogus=1", "bogus: no such setting"),
    ("+s1.bogus=1", "s1.bogus: no such setting"),
    ("model.device=tpu", "model.device: 'tpu' is not one of"),
    ("name=3", "name: expected str"),
    ("method=beam", "method: 'beam' is not one of generate"),
    ("mode=dual", "mode: 'dual' is not one of exact"),
    ("data=[]", "data: expected a list that is not empty"),
    ("data=math500", "data: expected a list"),
    ("data=[1]", "data: expected str"),
    ("data=[amc,amc]", "names one twice"),
    ("data_dir=1", "data_dir: expected str"),
    ("problems=-1", "problems: must be at least 0"),
    ("budgets=[]", "budgets: expected a list that is not empty"),
    ("budgets=[0]", "budgets: must be more than 0"),
    ("budgets=[64,64]", "names one twice"),
    ("budgets=[1.5]", "budgets: expected int"),
    ("n=0", "n: must be more than 0"),
    ("temperature=-1", "temperature: must be at least 0"),
    ("temperature=nan", "temperature: nan is not a finite number"),
    ("top_p=1.5", "top_p: must be at most 1"),
    ("top_p=0", "top_p: must be more than 0"),
    ("limit_factor=0", "limit_factor: must be more than 0"),
    ("max_tokens=0", "max_tokens: must be more than 0"),
    ("require_think=1", "require_think: expected bool"),
    ("seed=-1", "seed: must be at least 0"),
    ("bootstrap=0", "bootstrap: must be more than 0"),
    ("batch_size=0", "batch_size: must be more than 0"),
    ("page_size=0", "page_size: must be more than 0"),
    ("pages=-1", "pages: must be at least 0"),
    ("scale=huge", "scale: 'huge' is not one of auto, embedded, paper"),
    ("s1.wait=1", "s1.wait: expected str"),
    ("s1.final=null", "s1.final: expected str"),
    ("s1.answer_tokens=0", "s1.answer_tokens: must be more than 0"),
    ("s1.waits=-1", "s1.waits: must be at least 0"),
    ("method=api", "api.url: method=api needs"),
    ("api.url=ftp://x", "api.url: 'ftp://x' is not an http"),
    ("api.model=1", "api.model: expected str"),
    ("api.key_env=null", "api.key_env: expected str"),
    ("api.limit_key=limit", "api.limit_key: 'limit' is not one of"),
    ("api.concurrency=0", "api.concurrency: must be more than 0"),
    ("api.retries=-1", "api.retries: must be at least 0"),
    ("api.timeout_s=0", "api.timeout_s: must be more than 0"),
    ("api.usd_per_million_prompt=-1", "api.usd_per_million_prompt: must be at least 0"),
    ("api.usd_per_million_completion=-1", "api.usd_per_million_completion: must be at least 0"),
    ("words.conclusion=[]", "words.conclusion: expected a list that is not empty"),
    ("words.conclusion=so", "words.conclusion: expected a list"),
    ("words=null", "words"),
    ("out=1", "out: expected str"),
    ("budgets=[", "budgets"),
]


@pytest.mark.parametrize(("override", "message"), WRONG, ids=[override for override, _ in WRONG])
def test_a_setting_that_cannot_work_is_named(override, message):
    with pytest.raises(ConfigError) as error:
        read_settings([override])
    assert message in str(error.value)


def test_defaults_are_the_papers_and_the_embedded_models_own():
    paper, small = read_settings(["scale=paper"]), read_settings([])
    assert (paper.temperature, paper.top_p, paper.limit_factor, paper.n) == (0.6, 0.95, 2.0, 16)
    assert paper.budgets == (512, 1024, 2048, 3600)
    assert (small.scale, small.temperature, small.top_p) == ("embedded", 1.0, 1.0)
    assert paper.words == small.words
    assert "wait" in paper.words["self_correction"]


def test_grading_is_as_in_a_run_but_for_the_workers():
    run = yaml.safe_load((CONF / "grading" / "default.yaml").read_text())
    assert run | {"workers": 1} == dataclasses.asdict(read_settings([]).grading)


def test_lists_and_words_can_be_overridden():
    settings = read_settings(
        ["data=[math500,/x/y.jsonl]", "budgets=[512,3600]", "words.conclusion=[ergo]"]
    )
    assert settings.data == ("math500", "/x/y.jsonl") and settings.budgets == (512, 3600)
    assert settings.words["conclusion"] == ("ergo",)


def test_the_scale_is_that_of_the_run_behind_the_model(tmp_path):
    run, checkpoint = tmp_path / "run", tmp_path / "run" / "checkpoints" / "step-00000004"
    checkpoint.mkdir(parents=True)
    write_json_atomic(run / "config.json", {"scale": "embedded"})
    write_json_atomic(checkpoint / "state.json", {"config": {"scale": "embedded"}})
    assert read_settings([f"model.path={run}"]).scale == "embedded"
    assert read_settings([f"model.path={checkpoint}"]).scale == "embedded"
    assert read_settings([f"model.path={tmp_path}"]).scale == "paper"
    assert read_settings([f"model.path={run}", "scale=paper"]).scale == "paper"
