"""What the fuzzer found once, each with the refusal that it should have been."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.fuzz.targets import INDEX, SMALL, put, small_folder
from trainer.config import ConfigError, parse_config
from trainer.data.problems import load_problems
from trainer.evaluate.sets import load_set
from trainer.evaluate.settings import read_settings
from trainer.evaluate.store import SampleStore
from trainer.files import read_json
from trainer.grading import MAX_ANSWER_CHARS
from trainer.model import load_model
from trainer.model.config import read_config
from trainer.plan.settings import read_asked
from trainer.preflight import find_model
from trainer.record import read_rows
from trainer.settings import NonNeg, PosInt, build_settings, compose_settings

DEEP = '{"a": ' * 100_000


def refuse_config(folder: Path, message: str, **changes: object) -> None:
    put(folder / "config.json", json.dumps({**SMALL.to_hf_dict(), **changes}))
    with pytest.raises(ValueError, match=rf"config\.json: .*{message}"):
        read_config(folder)


def test_deeply_nested_json_is_not_json(tmp_path: Path) -> None:
    """RecursionError is no ValueError."""
    put(tmp_path / "config.json", DEEP)
    with pytest.raises(ValueError, match=r"config\.json: not JSON"):
        read_config(tmp_path)
    with pytest.raises(ValueError, match="recursion"):
        read_json(tmp_path / "config.json")
    put(tmp_path / "metrics.jsonl", DEEP + "\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl:1: not a JSON row"):
        read_rows(tmp_path / "metrics.jsonl")
    put(tmp_path / "samples.jsonl", DEEP + "\n")
    with pytest.raises(ValueError, match=r"samples\.jsonl:1: not a sample"):
        SampleStore(tmp_path, {})


@pytest.mark.parametrize("layers", [1_001, 2**31, 2**63, 10**400])
def test_a_billion_layers(tmp_path: Path, layers: int) -> None:
    """They were a list of strings: 16 GiB, or OverflowError."""
    refuse_config(tmp_path, "num_hidden_layers", num_hidden_layers=layers)


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "intermediate_size", "head_dim"])
def test_weights_too_large_for_a_tensor(tmp_path: Path, key: str) -> None:
    """torch says TypeError or RuntimeError to such sizes."""
    for size in (2**42, 2**63, 10**400):
        refuse_config(tmp_path, "elements", **{key: size})


def test_sizes_that_only_the_rotary_embedding_would_notice(tmp_path: Path) -> None:
    """Frequencies are made before any weight is compared: gigabytes, or OverflowError."""
    refuse_config(tmp_path, "head_dim", head_dim=2**31)
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}
    scaling |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 10**400}
    refuse_config(tmp_path, "original_max_position_embeddings", rope_scaling=scaling)


def test_a_number_beyond_floats(tmp_path: Path) -> None:
    refuse_config(tmp_path, "rms_norm_eps must be a positive number", rms_norm_eps=10**400)


def test_layer_types_must_be_full_attention_for_each_layer(tmp_path: Path) -> None:
    for kinds in (["full_attention"] * 2, [], "full_attention", ["sliding_attention"], [[]], 1):
        refuse_config(tmp_path, "layer_types", layer_types=kinds)
    put(
        tmp_path / "config.json",
        json.dumps({**SMALL.to_hf_dict(), "layer_types": ["full_attention"]}),
    )
    assert read_config(tmp_path) == SMALL


@pytest.mark.parametrize(
    "tokenizer",
    [
        {"model": []},
        {"model": {"vocab": 8}},
        {"model": {"vocab": {"a": []}}},
        {"model": {"vocab": {"a": "1"}}},
        {"added_tokens": 0},
        {"added_tokens": [{"": 1}]},
        {"added_tokens": {"": 1}},
    ],
)
def test_a_tokenizer_of_another_shape(tmp_path: Path, tokenizer: dict) -> None:
    small_folder(tmp_path)
    put(tmp_path / "tokenizer.json", json.dumps(tokenizer))
    with pytest.raises(ValueError, match=r"tokenizer\.json: "):
        load_model(tmp_path, dtype=torch.float32)


def test_damaged_parquet(tmp_path: Path) -> None:
    """pyarrow raises OSError and UnicodeDecodeError too, which are none of its own."""
    pa = pytest.importorskip("pyarrow", reason="the parquet extra is not installed")
    import pyarrow.parquet as pq

    path = tmp_path / "set.parquet"
    pq.write_table(pa.table({"problem": ["1+1?"], "answer": ["2"]}), path)
    content = path.read_bytes()
    for damaged in (
        content.replace(b"problem", b"pro\xfflem"),
        content[:-100] + b"\xff" * 50 + content[-50:],
        content[:4] + bytes(20) + content[24:],
    ):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"set\.parquet: not a readable parquet file"):
            load_problems(str(path))


@pytest.mark.parametrize("hint", [PosInt, NonNeg, float, int])
def test_an_integer_beyond_floats(hint: object) -> None:
    class Settings:
        lr: hint

    Settings.__annotations__ = {"lr": hint}
    with pytest.raises(ConfigError, match=r"^lr: must be within ±9223372036854775807"):
        build_settings(Settings, {"lr": 10**400}, "")


@pytest.mark.parametrize("override", ["a" * 5_000 + "=1", "seed=" + "[" * 2_000, "+="])
def test_overrides_that_hydra_stumbles_over(override: str) -> None:
    """OSError for a group's name longer than a file's may be; RecursionError, AssertionError."""
    with pytest.raises(ConfigError) as caught:
        compose_settings(".", ["scale=embedded", override])
    assert len(str(caught.value)) < 20_000


def test_names_longer_than_any_file_has(tmp_path: Path) -> None:
    """Path.is_dir raises OSError for them."""
    name = "a" * 300
    assert read_settings([f"model.path={name}"]).scale == "paper"
    with pytest.raises(ConfigError, match=r"^model\.path: no such folder"):
        find_model(name)
    with pytest.raises(ConfigError, match=r"^plan\.shape: "):
        read_asked([f"model.path={name}"])
    with pytest.raises(ValueError, match="no such file"):
        load_problems(f"{name}.jsonl")
    small_folder(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    put(tmp_path / INDEX, json.dumps({"weight_map": {"a": f"{name}.safetensors"}}))
    with pytest.raises(ValueError, match=r"index\.json: 'a+\.safetensors' is missing"):
        load_model(tmp_path, dtype=torch.float32)
    with pytest.raises(ValueError, match="olympiad"):
        load_set("olympiad", name, 1)


def test_budgets_without_end() -> None:
    """All of them were counted, to see whether budget.skip leaves one: MemoryError."""
    settings = compose_settings(".", ["scale=embedded", "+experiment=l1_exact"])
    settings["budget"]["max"] = 2**62
    with pytest.raises(ConfigError, match=r"^budget\.max: "):
        parse_config(settings)


def test_answers_longer_than_grading_reads_are_dropped(tmp_path: Path) -> None:
    """Reading the truth is quadratic, and it is read for each sample."""
    rows = [{"problem": "q", "answer": "1" * size} for size in (1, MAX_ANSWER_CHARS + 1, 7)]
    path = put(tmp_path / "set.jsonl", "\n".join(map(json.dumps, rows)))
    found = load_problems(str(path))
    assert [problem.id for problem in found.problems] == ["set-0", "set-2"]
    assert found.dropped == {"no_answer": 0, "long_answer": 1}
