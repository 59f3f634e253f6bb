"""Folders of training runs and of evaluations, read into one form for the report.

A training run gives the evaluations before and after it, its metrics, and the rollouts of its last
step; an evaluation folder gives what `evaluation.json` and `samples.jsonl` hold. What a folder
lacks is a note on its source, for the page to show, not an error.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from trainer.files import read_json
from trainer.plots import first_and_last, phase_name
from trainer.record import EVALUATIONS, METRICS, SAMPLES, iter_rows, read_rows
from trainer.samples import clean, load_step

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

EVALUATION = "evaluation.json"
# What a row of evaluation.json must have. Any figure may be null: not known.
NEEDED = ("data", "budget", "mode", "pass1", "mean_tokens")
FIGURES = (
    "budget", "pass1", "pass1_low", "pass1_high", "pass_k", "maj_k", "mean_tokens", "deviation",
    "sample_deviation", "rmse", "bias", "over", "soft_over", "correlation", "truncated",
)  # fmt: skip
SAMPLE_NEEDED = (
    "data", "problem_id", "problem", "budget", "mode", "text", "tokens", "reason", "answer",
    "truth",
)  # fmt: skip


@dataclass(frozen=True)
class Method:
    """What is compared: a way to answer within a budget, or a phase of a training run.

    `rows` are in the form of evaluation.json, one a data set and budget. `used` is (tokens asked,
    tokens used) of each sample with a budget.
    """

    name: str
    rows: list[dict[str, Any]]
    used: list[tuple[int, int]]


@dataclass(frozen=True)
class Source:
    """A folder. `metrics` are the rows of metrics.jsonl, `facts` what it was made with."""

    name: str
    folder: Path
    methods: list[Method]
    metrics: list[dict[str, Any]]
    facts: dict[str, Any]
    notes: list[str]

    def samples(self) -> Iterator[dict[str, Any]]:
        """The samples there are, in the form of an evaluation's; read from the disk each time.

        "method" names their method; rollouts of training, each with a budget of its own, have
        "rollout" too. Raises ValueError naming file and line of a row that is none, OSError.
        """
        if not (self.folder / SAMPLES).is_file():
            return
        if (self.folder / EVALUATION).is_file():
            names = {row["mode"]: method.name for method in self.methods for row in method.rows}
            for row in _evaluation_samples(self.folder / SAMPLES):
                yield row | {"method": names.get(row["mode"], f"{self.name} ({row['mode']})")}
        else:
            yield from _rollouts(self.folder, self.name)


def load_sources(folders: Sequence[Path]) -> list[Source]:
    """Read the folders; methods and phases that could be mixed up get their folder's name.

    Raises ValueError naming a folder that is neither a run nor an evaluation, or holds a bad file.
    """
    sources = [_load(folder) for folder in folders]
    seen = Counter(source.name for source in sources)
    sources = [replace(s, name=clean(str(s.folder))) if seen[s.name] > 1 else s for s in sources]
    names = Counter(method.name for source in sources for method in source.methods)
    several = len(sources) > 1
    return [
        replace(source, methods=[_told_apart(m, source, names, several) for m in source.methods])
        for source in sources
    ]


def _told_apart(method: Method, source: Source, names: Counter[str], several: bool) -> Method:
    """A phase of training says of which run as soon as there is anything else to be seen."""
    if names[method.name] > 1 or (several and not (source.folder / EVALUATION).is_file()):
        return replace(method, name=f"{method.name} · {source.name}")
    return method


def _load(folder: Path) -> Source:
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    if (folder / EVALUATION).is_file():
        return _load_evaluation(folder)
    if any((folder / name).is_file() for name in (METRICS, EVALUATIONS)):
        return _load_training(folder)
    raise ValueError(
        f"{folder}: neither a training run ({METRICS} or {EVALUATIONS}) nor an evaluation "
        f"({EVALUATION})"
    )


def _load_evaluation(folder: Path) -> Source:
    path = folder / EVALUATION
    content = _json(path)
    rows = content.get("rows") if isinstance(content, dict) else None
    if not isinstance(rows, list):
        raise ValueError(f'{path}: not an evaluation: "rows" is not a list')
    rows = [_checked(row, f"{path}: row {number}") for number, row in enumerate(rows)]
    name = clean(str(content.get("method") or folder.name))
    used: dict[str, list[tuple[int, int]]] = {row["mode"]: [] for row in rows}
    notes = []
    if (folder / SAMPLES).is_file():
        for row in _evaluation_samples(folder / SAMPLES):
            if row["budget"]:
                used.setdefault(row["mode"], []).append((row["budget"], row["tokens"]))
    else:
        notes.append(f"no {SAMPLES}: no distribution of tokens and no samples to read")
    methods = [
        Method(
            name if len(used) == 1 else f"{name} ({clean(mode)})",
            [row for row in rows if row["mode"] == mode],
            used[mode],
        )
        for mode in used
    ]
    if not any(row.get("behaviour") for row in rows):
        notes.append("no counts of behaviour")
    facts = {key: content[key] for key in ("model", "method", "settings") if key in content}
    return Source(clean(folder.resolve().name), folder, methods, [], facts, notes)


def _checked(row: Any, where: str) -> dict[str, Any]:
    """A row of evaluation.json that can be drawn; ValueError saying where it cannot, and why."""
    if not isinstance(row, dict) or not all(key in row for key in NEEDED):
        raise ValueError(f"{where}: not a row with {', '.join(NEEDED)}")
    for key in ("data", "mode"):
        if not isinstance(row[key], str):
            raise ValueError(f"{where}: {key} {row[key]!r} is not a string")
    for key in FIGURES:
        if not isinstance(row.get(key), int | float | None):
            raise ValueError(f"{where}: {key} {row[key]!r} is not a number")
    return row | {"data": clean(row["data"])}


def _load_training(folder: Path) -> Source:
    notes = [
        f"no {name}: {lost}"
        for name, lost in (
            (METRICS, "no curves of training"),
            (EVALUATIONS, "no evaluation before and after"),
            (SAMPLES, "no samples to read"),
            ("config.json", "the data set and the settings are not known"),
        )
        if not (folder / name).is_file()
    ]
    config = _json(folder / "config.json") if (folder / "config.json").is_file() else {}
    data = _held_out(config)
    name = clean(folder.resolve().name)
    evaluations = read_rows(folder / EVALUATIONS) if (folder / EVALUATIONS).is_file() else []
    methods = [
        Method(
            phase_name(row),
            [_as_evaluation_row(cell, data, config) for cell in row["budgets"]],
            [(asked, used) for asked, used, _ in row["used"]],
        )
        for row in first_and_last(evaluations)
    ]
    metrics = read_rows(folder / METRICS) if (folder / METRICS).is_file() else []
    if methods:
        notes.append("evaluations of a training run hold no intervals, and count no behaviour")
    return Source(name, folder, methods, metrics, config, notes)


def _held_out(config: dict[str, Any]) -> str:
    """What to call the held-out problems of a training run: the last part of their path."""
    path = config.get("data", {}).get("heldout", "held-out")
    return clean(str(path)).rstrip("/").rpartition("/")[2]


def _as_evaluation_row(cell: dict[str, Any], data: str, config: dict[str, Any]) -> dict[str, Any]:
    """A budget of evaluations.jsonl in the form of evaluation.json, whose "deviation" is the
    paper's, of mean lengths."""
    return {
        "data": data,
        "budget": cell["budget"],
        "mode": config.get("budget", {}).get("mode", "exact"),
        "n": cell.get("samples"),
        "pass1": cell["accuracy"],
        "mean_tokens": cell["mean_tokens"],
        "deviation": cell.get("mean_deviation"),
        "sample_deviation": cell.get("deviation"),
        "rmse": cell.get("rmse"),
        "over": cell.get("over_budget"),
    }


def _evaluation_samples(path: Path) -> Iterator[dict[str, Any]]:
    for row in iter_rows(path, "text", str):
        for key in SAMPLE_NEEDED:
            if key not in row:
                raise ValueError(f'{path}: a sample has no "{key}"')
        if not isinstance(row["tokens"], int) or not isinstance(row["budget"], int | None):
            asked = f"{row['tokens']!r} used, {row['budget']!r} asked"
            raise ValueError(f"{path}: tokens are whole numbers, got {asked}")
        yield row


def _rollouts(folder: Path, name: str) -> Iterator[dict[str, Any]]:
    """The last step of a training run; a run without one has none."""
    if not (folder / SAMPLES).stat().st_size:
        return
    for row in load_step(folder, None):
        yield {
            "data": f"rollouts of {name}",
            "method": f"step {row['step']} · {name}",
            "problem_id": row["problem"],
            "problem": row["question"],
            "budget": row["budget"] if row["mode"] != "none" else None,
            "mode": row["mode"],
            "k": row["sample"],
            "text": row["text"],
            "tokens": row["tokens"],
            "reason": row["reason"],
            "answer": row["extracted"],
            "truth": row["answers"],
            "rollout": True,
        }


def _json(path: Path) -> Any:
    try:
        return read_json(path)
    except ValueError as error:  # not JSON, or not UTF-8
        raise ValueError(f"{path}: not a JSON file ({error})") from None
