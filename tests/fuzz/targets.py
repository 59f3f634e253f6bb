"""What is fuzzed: everything that reads text or files which we did not write.

A target's `run` gets an input and a folder of the target's own. It may return, or raise exactly one
of `refusals` whose message names the file or key; anything else is a find.
"""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from tests.fuzz import mutate
from trainer.checkpoint import CheckpointError, verify_checkpoint
from trainer.config import ConfigError, parse_config
from trainer.data.problems import load_problems
from trainer.evaluate.sets import load_set
from trainer.evaluate.settings import read_settings
from trainer.evaluate.store import SampleStore
from trainer.grading import MAX_ANSWER_CHARS, REASONS, grade
from trainer.grading.choice import read_choice, same_choice
from trainer.grading.extract import last_box
from trainer.grading.parse import parse, same_answer
from trainer.grading.tolerance import within
from trainer.model import Decoder, ModelConfig, load_model, save_model
from trainer.model.config import read_config
from trainer.record import iter_rows
from trainer.run import CONF  # importing it registers the resolver that conf/ uses
from trainer.settings import compose_settings
from trainer.types import Problem

CORPUS = Path(__file__).with_name("corpus")
SMALL = ModelConfig("qwen2", 11, 8, 8, 1, 2, 1, 4)
INDEX = "model.safetensors.index.json"
Mutator = Callable[[random.Random, Sequence[str]], str]


@dataclass(frozen=True)
class Target:
    """One reader, its seeds, and how it may say no."""

    name: str
    seeds: tuple[str, ...]
    mutate: Mutator
    run: Callable[[str, Path], None]
    refusals: tuple[type[Exception], ...] = ()
    named: str = ""  # stands in every refusal


def corpus(name: str) -> tuple[str, ...]:
    """The committed inputs of one file in corpus/."""
    return tuple(json.loads((CORPUS / f"{name}.json").read_text(encoding="ascii")))


def put(path: Path, text: str) -> Path:
    """`text` as a file, lone surrogates included; safetensors and parquet come as latin-1."""
    binary = path.suffix in (".safetensors", ".parquet")
    path.write_bytes(text.encode("latin-1") if binary else text.encode("utf-8", "surrogatepass"))
    return path


def run_extract(text: str, folder: Path) -> None:
    """The last box is a stretch of the text."""
    box = last_box(text)
    assert box is None or box in text


def run_parse(text: str, folder: Path) -> None:
    """Any text has a value, equal to itself unless empty, and equality has no direction."""
    text = text[:MAX_ANSWER_CHARS]
    half = len(text) // 2
    value = parse(text)
    hash(value)
    assert same_answer(text, text) == (value.value != "")
    assert same_answer(text, text[:half]) == same_answer(text[:half], text)
    assert within(text, text, 0.0) in (True, False)
    assert within(text[:half], text, 1.0) == within(text, text[:half], 1.0)
    assert same_choice(text, text) == (read_choice(text) is not None)


def run_grade(text: str, folder: Path) -> None:
    """Always a score with a reason, 1 exactly when that is "correct"."""
    for kind in ("math", "choice"):
        problem = Problem("p", "q", (text[:40], "17"), kind)
        for require_think in (True, False):
            score = grade(text, problem, require_think=require_think)
            assert score.reason in REASONS and (score.value == 1.0) == (score.reason == "correct")


def run_problems(suffix: str) -> Callable[[str, Path], None]:
    """Reads a data set of that format."""

    def run(text: str, folder: Path) -> None:
        found = load_problems(str(put(folder / f"set{suffix}", text)))
        assert all(problem.question.strip() and problem.answers for problem in found.problems)

    return run


def run_sets(text: str, folder: Path) -> None:
    """Reads the rows as each of the named sets with a converter."""
    refused = []
    for name in ("olympiad", "gpqa", "lsat", "mmlu"):
        put(folder / f"{name}.jsonl", text)
        try:
            load_set(name, str(folder), 0)
        except ValueError as error:
            assert type(error) is ValueError and name in str(error), repr(error)
            refused.append(name)
    if refused:
        raise ValueError(", ".join(refused))


def run_rows(text: str, folder: Path) -> None:
    """Reads the rows of a run folder."""
    for row in iter_rows(put(folder / "metrics.jsonl", text)):
        assert isinstance(row["step"], int)


def run_samples(text: str, folder: Path) -> None:
    """Goes on in the folder of an evaluation."""
    put(folder / "samples.jsonl", text)
    SampleStore(folder, {}).close()


def run_settings(text: str, folder: Path) -> None:
    """A composed configuration with any value replaced."""
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError):
        return  # hydra composed it: it is never text
    parse_config(raw)


def run_overrides(text: str, folder: Path) -> None:
    """Arguments of a command line, one a line."""
    overrides = text.split("\n")
    for read in (lambda: compose_settings(".", overrides), lambda: read_settings(overrides)):
        try:
            read()
        except ConfigError as error:
            assert str(error), "an empty refusal"


def run_config(text: str, folder: Path) -> None:
    """A model's config.json; what is accepted is written and read to the same."""
    put(folder / "config.json", text)
    config = read_config(folder)
    put(folder / "config.json", json.dumps(config.to_hf_dict()))
    assert read_config(folder) == config


def loading(name: str) -> Callable[[str, Path], None]:
    """Loads a good model folder in which that file is replaced."""

    def run(text: str, folder: Path) -> None:
        small_folder(folder)
        if name == INDEX and (folder / "model.safetensors").exists():  # else nobody looks into it
            (folder / "model.safetensors").rename(folder / "x.safetensors")
        put(folder / name, text)
        load_model(folder, dtype=torch.float32)

    return run


def run_manifest(text: str, folder: Path) -> None:
    """A checkpoint's manifest."""
    checkpoint = folder / "step-00000001"
    checkpoint.mkdir(exist_ok=True)
    put(checkpoint / "state.json", "{}")
    put(checkpoint / "manifest.json", text)
    verify_checkpoint(checkpoint)


def small_folder(folder: Path) -> None:
    """A good model folder."""
    if not (folder / "config.json").exists():
        model = Decoder(SMALL)
        model.init_weights(0)
        save_model(model, folder)


def small_header() -> str:
    """The header of SMALL's own weights."""
    header, at = {}, 0
    for name, tensor in Decoder(SMALL, device="meta").state_dict().items():
        size = tensor.numel() * 4
        header[name] = {
            "dtype": "F32",
            "shape": list(tensor.shape),
            "data_offsets": [at, at + size],
        }
        at += size
    return json.dumps(header)


def small_parquet() -> str:
    """A good parquet file as latin-1 text."""
    import pyarrow
    import pyarrow.parquet

    stream = io.BytesIO()
    rows = [{"problem": "1+1?", "answer": ["2", "two"], "id": "a"}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), stream)
    return stream.getvalue().decode("latin-1")


def targets() -> list[Target]:
    """All of them; parquet only where pyarrow is."""
    assert CONF.is_dir()
    data_size = sum(t.numel() * 4 for t in Decoder(SMALL, device="meta").state_dict().values())
    headers = [mutate.tensor_file(header, 64) for header in corpus("headers")]
    settings = json.dumps(compose_settings(".", ["scale=embedded", "+experiment=l1_exact"]))
    index = json.dumps({"weight_map": dict.fromkeys(json.loads(small_header()), "x.safetensors")})
    configs = (json.dumps(SMALL.to_hf_dict()), *corpus("configs"))
    answers, texts, rows = corpus("answers"), corpus("texts"), corpus("rows")
    manifest = {"format": 1, "step": 1, "files": {"state.json": {"bytes": 2, "sha256": "0" * 64}}}
    text, lines, tree = mutate.mutate_text, mutate.mutate_lines, mutate.mutate_json
    files = (ValueError,)
    found = [
        Target("extract", texts, text, run_extract),
        Target("parse", answers, text, run_parse),
        Target("grade", (*texts, *(rf"</think>\boxed{{{a}}}" for a in answers)), text, run_grade),
        Target("jsonl", rows, lines, run_problems(".jsonl"), files, "set.jsonl"),
        Target("json", rows, tree, run_problems(".json"), files, "set.json"),
        Target("sets", rows, lines, run_sets, files),
        Target("rows", corpus("metrics"), lines, run_rows, files, "metrics.jsonl"),
        Target("samples", corpus("samples"), lines, run_samples, files, "samples.jsonl"),
        Target("settings", (settings,), tree, run_settings, (ConfigError,)),
        Target("overrides", corpus("overrides"), text, run_overrides),
        Target("config", configs, tree, run_config, files, "config.json"),
        Target("model", configs, tree, loading("config.json"), files, "{folder}"),
        Target(
            "tensors",
            (mutate.tensor_file(small_header(), data_size), *headers),
            mutate.mutate_tensors,
            loading("model.safetensors"),
            files,
            "{folder}",
        ),
        Target("index", (index,), tree, loading(INDEX), files, "{folder}"),
        Target(
            "tokenizer",
            corpus("tokenizers"),
            tree,
            loading("tokenizer.json"),
            files,
            "tokenizer.json",
        ),
        Target(
            "manifest", (json.dumps(manifest),), tree, run_manifest, (CheckpointError,), "step-0"
        ),
    ]
    try:
        seed = small_parquet()
    except ImportError:
        return found
    bytewise = mutate.mutate_bytes
    return [
        *found,
        Target("parquet", (seed,), bytewise, run_problems(".parquet"), files, "set.parquet"),
    ]
