"""What bench.rollout found, on disk: rollout.csv and its section of benchmarks.md."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from bench.document import write_section

BEGIN, END = "<!-- rollout:begin, written by python -m bench.rollout -->", "<!-- rollout:end -->"

Row = dict[str, str]


def write(out: Path, rows: Sequence[Row]) -> None:
    """Both files in `out`; of the document only what stands between the markers is replaced."""
    folder = out / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "rollout.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    write_section(out / "benchmarks.md", BEGIN, END, markdown(rows))


def markdown(rows: Sequence[Row]) -> str:
    """A table with a column a model."""
    first = rows[0]
    models = list(dict.fromkeys((row["model"], row["dtype"]) for row in rows))
    found = {(row["model"], row["dtype"], row["figure"]): row["value"] for row in rows}
    lines = [
        "### The rollout engine\n",
        f"{first['machine']} · torch {first['torch']} · {first['threads']} threads · commit "
        f"{first['commit']} · load {first['load']}.\n",
        "| figure | " + " | ".join(f"{model}, {dtype}" for model, dtype in models) + " |",
        "|---|" + "---:|" * len(models),
    ]
    for figure in dict.fromkeys(row["figure"] for row in rows):
        values = [found.get((*model, figure), "") for model in models]
        lines.append(f"| {figure} | {' | '.join(values)} |")
    return "\n".join(lines) + "\n"
