"""One evaluation from settings to its folder: samples, figures, behaviour, JSON and CSV."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trainer.evaluate import api, local
from trainer.evaluate.behaviour import behaviour, thinking
from trainer.evaluate.display import Display
from trainer.evaluate.figures import Figures, figures
from trainer.evaluate.grades import graded
from trainer.evaluate.methods import Job, jobs, token_limit
from trainer.evaluate.sets import load_set
from trainer.evaluate.settings import EvaluationSettings, run_config
from trainer.evaluate.store import SampleStore
from trainer.files import write_json_atomic
from trainer.grading.grader import sound_alarm
from trainer.metrics import correlation
from trainer.preflight import find_model
from trainer.settings import flatten
from trainer.types import Problem

EVALUATION, TABLE = "evaluation.json", "evaluation.csv"
# What a sample depends on, beside data, budget, problem and k, by which it is found.
SHAPING = ("mode", "temperature", "top_p", "limit_factor", "max_tokens", "require_think", "seed")


def run_evaluation(settings: EvaluationSettings) -> tuple[Path, dict[str, Any]]:
    """Draw what is missing, then write evaluation.json and evaluation.csv: (folder, evaluation).

    Raises ValueError (ConfigError, ApiError) for what a user can mend; samples that are drawn stay.
    """
    sets = [load_set(spec, settings.data_dir, settings.problems) for spec in settings.data]
    remote = settings.method == "api"
    folder = None if remote else find_model(settings.model.path)
    name = settings.name or default_name(settings)
    out = Path(settings.out or f"runs/evaluation-{name.replace('/', '_').replace(':', '_')}")
    store = SampleStore(out, identity(settings, folder))
    wanted = jobs(settings, sets)
    missing = store.missing(wanted)
    expected = {job.key: job.budget or token_limit(settings, 0) for job in missing}
    rows = api.draw(settings, missing) if remote else local.draw(settings, folder, missing)
    kept = len(wanted) - len(missing)
    try:
        with Display(name, len(missing), sum(expected.values()), kept) as display:
            for row in graded(settings, missing, rows) if missing else ():
                store.add(row)
                display.sample(expected[row["data"], row["problem_id"], row["budget"], row["k"]])
    finally:
        store.close()
    sound_alarm([row["reason"] for row in store.select(wanted)], settings.grading.alarm_share)
    evaluation = {
        "model": settings.api.model if remote else settings.model.path,
        "method": name,
        "settings": dataclasses.asdict(settings),
        "rows": table(settings, sets, wanted, store),
    }
    if remote:
        evaluation["cost"] = api.cost(settings.api, list(store.select(wanted)))
    evaluation = json.loads(json.dumps(evaluation))  # tuples as lists: what a reader will find
    write_json_atomic(out / EVALUATION, evaluation)
    write_csv(out / TABLE, evaluation["rows"])
    return out, evaluation


def default_name(settings: EvaluationSettings) -> str:
    """A method's name from what it is: "s1", "base", "l1_exact", "api:NAME", a folder's name."""
    if settings.method == "api":
        return f"api:{settings.api.model}"
    if settings.method != "generate":
        return settings.method
    path = settings.model.path
    config = run_config(path)
    if config:
        return config["name"]
    model = "base" if path == "embedded" else Path(path).name
    return model if settings.mode == "none" else f"{model}_{settings.mode}"


def identity(settings: EvaluationSettings, folder: Path | None) -> dict[str, Any]:
    """What all samples of one folder have in common, as JSON."""
    shared = {key: getattr(settings, key) for key in ("method", *SHAPING)}
    if settings.grading.symbolic:
        shared["symbolic"] = True
    if folder is None:
        return {**shared, "url": settings.api.url, "model": settings.api.model}
    shared["weights"] = local.weights_of(folder)
    if settings.method == "s1":
        shared["s1"] = dataclasses.asdict(settings.s1)
    return shared


def table(
    settings: EvaluationSettings,
    sets: Sequence[tuple[str, Sequence[Problem]]],
    wanted: Sequence[Job],
    store: SampleStore,
) -> list[dict[str, Any]]:
    """One row for each data set and budget.

    `correlation` is of used with requested tokens over all budgets of the data set, so it is the
    same in its rows; None where there is but one budget.
    """
    how = Figures(settings.bootstrap, settings.seed)
    rows = []
    for data, _ in sets:
        mine = [job for job in wanted if job.data == data]
        budgets = list(dict.fromkeys(job.budget for job in mine))
        asked = np.array([job.budget for job in mine], dtype=float)
        used = np.array([row["tokens"] for row in store.select(mine)], dtype=float)
        for budget in budgets:
            samples = list(store.select([job for job in mine if job.budget == budget]))
            rows.append(
                {
                    "data": data,
                    "budget": budget,
                    "mode": settings.mode,
                    **figures(samples, budget, how),
                    "correlation": correlation(asked, used) if len(budgets) > 1 else None,
                    "behaviour": behaviour(samples, settings.words),
                    "thinking": thinking(samples, embedded=data.startswith("embedded")),
                }
            )
    return rows


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """The rows flat, a group's members as `group.member`; what a row lacks is empty. OSError."""
    flat = [flatten(row) for row in rows]
    columns = list(dict.fromkeys(key for row in flat for key in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(flat)
