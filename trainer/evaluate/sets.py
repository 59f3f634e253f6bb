"""The data sets of an evaluation by name: where each is found and how a row becomes a problem.

A name is looked up in `data_dir` first (NAME.jsonl, NAME.json, NAME.parquet), then on the Hub. Any
file or Hub data set with a question and an answer in each row serves without a name.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from os.path import isfile
from pathlib import Path
from typing import Any

from trainer.data.problems import load_problems, source_rows
from trainer.embedded.outside import OUTSIDE, make_outside
from trainer.embedded.task import make_problem
from trainer.evaluate.choices import write_choices
from trainer.types import Problem

EMBEDDED_PROBLEMS = 1000  # where `problems` is 0: the embedded task has no end
# Generator seeds that no run would have: evaluations within training draw by the run's seed. What
# judges a recipe is not what it was chosen on.
EMBEDDED_SEEDS = {"embedded": 1_000_003, "embedded_selection": 20_000}
SUFFIXES = (".jsonl", ".json", ".parquet")

Row = dict[str, Any]


@dataclass(frozen=True)
class DataSet:
    """A named data set. `convert(row, id, rng)` makes the problem; None reads question and answer.

    `rng` is seeded by the problem's id, so a shuffle of choices is the same whatever is loaded.
    """

    hub: str  # spec as trainer/data/problems.py takes it
    question_key: str = "problem"
    answer_key: str = "answer"
    convert: Callable[[Row, str, random.Random], Problem] | None = None
    sample: int = 0  # rows drawn by a fixed seed; 0 takes all


def _olympiad(row: Row, name: str, rng: random.Random) -> Problem:
    r"""All parts of a list are asked for; `error` is the tolerance; the unit may be left out."""
    question = "\n\n".join(filter(None, [row.get("context"), row["question"]]))
    if row.get("unit"):
        question += f"\n\nGive the answer in {row['unit']}."
    parts = row["final_answer"] if isinstance(row["final_answer"], list) else [row["final_answer"]]
    answer = ", ".join(str(part).strip().strip("$") for part in parts)
    error = str(row.get("error") or "0").split(",")  # one a part; the widest serves for all
    return Problem(name, question, (answer,), tolerance=max(map(float, error)))


def _gpqa(row: Row, name: str, rng: random.Random) -> Problem:
    wrong = [row[f"Incorrect Answer {i}"].strip() for i in (1, 2, 3)]
    return write_choices(
        name, row["Question"].strip(), [row["Correct Answer"].strip(), *wrong], 0, rng
    )


def _lsat(row: Row, name: str, rng: random.Random) -> Problem:
    """The passage with its question; the choices come as "(A)...", their letters are ours."""
    passage = row["query"].partition("Answer Choices:")[0].removeprefix("Q: ").strip()
    choices = [choice[3:].strip() for choice in row["choices"]]
    return write_choices(name, passage, choices, row["gold"][0], rng)


def _mmlu(row: Row, name: str, rng: random.Random) -> Problem:
    return write_choices(name, row["question"].strip(), row["choices"], row["answer"], rng)


SETS = {
    "aime2024": DataSet("hub:HuggingFaceH4/aime_2024:train"),
    "aime2025": DataSet("hub:math-ai/aime25:test"),
    "amc": DataSet("hub:AI-MO/aimo-validation-amc:train"),
    "math500": DataSet("hub:HuggingFaceH4/MATH-500:test"),
    "minerva": DataSet("hub:math-ai/minervamath:test", question_key="question"),
    "olympiad": DataSet("hub:Hothan/OlympiadBench/OE_TO_maths_en_COMP:train", convert=_olympiad),
    "gpqa": DataSet("hub:Idavidrein/gpqa/gpqa_diamond:train", convert=_gpqa),
    "lsat": DataSet("hub:hails/agieval-lsat-ar:test", convert=_lsat),
    "mmlu": DataSet("hub:cais/mmlu/all:test", convert=_mmlu, sample=1000),
}
NAMES = (*EMBEDDED_SEEDS, *OUTSIDE, *SETS)


def load_set(spec: str, data_dir: str | None, limit: int) -> tuple[str, tuple[Problem, ...]]:
    """(name for tables, problems) of a name, a file or a Hub data set; `limit` 0 takes all.

    Raises ValueError for a name there is not, for malformed rows, and where the Hub is needed
    and out of reach.
    """
    indices = range(limit or EMBEDDED_PROBLEMS)
    if spec in EMBEDDED_SEEDS:
        seed = EMBEDDED_SEEDS[spec]
        return spec, tuple(make_problem(seed, i, "heldout") for i in indices)
    if spec in OUTSIDE:
        seed = EMBEDDED_SEEDS["embedded"]
        return spec, tuple(make_outside(seed, i, spec) for i in indices)
    if spec in SETS:
        return spec, _named(spec, SETS[spec], data_dir, limit)
    if not spec.startswith("hub:") and Path(spec).suffix not in SUFFIXES:
        raise ValueError(
            f"data: {spec!r} is neither one of {', '.join(NAMES)}, nor a file "
            f"({', '.join(SUFFIXES)}), nor hub:owner/name[/config][:split]"
        )
    found = load_problems(spec, limit=limit or None)
    return Path(spec).stem if not spec.startswith("hub:") else spec, found.problems


def _named(name: str, data: DataSet, data_dir: str | None, limit: int) -> tuple[Problem, ...]:
    source = data.hub
    if data_dir is not None:
        files = [Path(data_dir) / f"{name}{suffix}" for suffix in SUFFIXES]
        source = next((str(file) for file in files if isfile(file)), source)
    try:
        problems = _converted(name, data, source)
    except ValueError as error:
        if source != data.hub:
            raise
        raise ValueError(
            f"data: {name}: {error}\n  without the Hub: put {name}.jsonl into a folder and set "
            "data_dir to it"
        ) from error
    if data.sample:
        problems = random.Random(name).sample(problems, min(data.sample, len(problems)))
    return tuple(problems[: limit or None])


def _converted(name: str, data: DataSet, source: str) -> list[Problem]:
    if data.convert is None:
        keys = {"question_key": data.question_key, "answer_key": data.answer_key}
        return list(load_problems(source, **keys).problems)
    problems = []
    for index, (where, row) in enumerate(source_rows(source)[1]):
        own = f"{name}-{index}"
        try:
            problems.append(data.convert(row, own, random.Random(own)))
        except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
            raise ValueError(f"{where}: not a row of {name}: {error!r}") from error
    return problems
