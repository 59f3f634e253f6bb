"""What bench.step found, on disk: step.csv, a plot, and its section of benchmarks.md."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from bench.document import write_section

COLUMNS = [
    *("part", "model", "case", "contender", "dtype", "micro_batch", "seconds", "peak_mib"),
    *("share_of_gemm", "tokens", "share", "calls"),
    *("machine", "torch", "threads", "omp_policy", "commit", "load"),
]
PARTS = ["tuning TRL", "step", "pass", "lengths", "profile"]
BEGIN, END = "<!-- step:begin, written by python -m bench.step -->", "<!-- step:end -->"

Row = dict[str, Any]


def write(out: Path, rows: list[Row]) -> None:
    """The three files in `out`; only what stands between the markers is replaced.

    Rows that step.csv has of other parts and models stay: a run may measure a few, and each is
    written when it is done.
    """
    file = out / "bench" / "step.csv"
    file.parent.mkdir(parents=True, exist_ok=True)
    shown = [{c: _text(row.get(c, "")) for c in COLUMNS} for row in rows]
    measured = {(row["model"], row["part"]) for row in shown}
    kept = [row for row in read(file) if (row["model"], row["part"]) not in measured]
    ordered = sorted([*kept, *shown], key=lambda row: (row["model"], PARTS.index(row["part"])))
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(ordered)
    lengths = [row for row in ordered if row["part"] == "lengths"]
    plot_lengths(lengths, file.with_name("step_lengths.png"))
    write_section(out / "benchmarks.md", BEGIN, END, markdown(ordered))


def read(file: Path) -> list[Row]:
    """The rows of a step.csv, all as text; none where there is no file."""
    if not file.exists():
        return []
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def markdown(rows: list[Row]) -> str:
    """A table a part and model, with what it was measured on."""
    parts = ["### The training step\n", '"times" is the time over the first line\'s.\n']
    for part, model in dict.fromkeys((r["part"], r["model"]) for r in rows):
        mine = [r for r in rows if (r["part"], r["model"]) == (part, model)]
        first = mine[0]
        about = f"{first['machine']}, {first['threads']} threads, "
        about += f"OpenMP {first['omp_policy']}, torch {first['torch']}"
        about += f", commit {first['commit']}, load {first['load']}"
        parts.append(f"**{part}, {model}** · {about}\n")
        parts.append(_table(part, mine))
    if any(row["part"] == "lengths" for row in rows):
        parts.append("![cost against length](bench/step_lengths.png)\n")
    return "\n".join(parts)


def _table(part: str, rows: list[Row]) -> str:
    extra = {"step": ["peak_mib"], "tuning TRL": ["peak_mib"], "pass": ["share_of_gemm"]}
    extra |= {"lengths": ["tokens"], "profile": ["share", "calls"]}
    names = ["case", "contender", "dtype", "seconds", "times", *extra[part]]
    lines = ["| " + " | ".join(names) + " |", "|---|---|---|" + "---:|" * (len(names) - 3)]
    first: dict[tuple[str, str], float] = {}
    for row in rows:
        key = (
            row["case"] if part == "step" else "",
            row.get("dtype", "") if part == "pass" else "",
        )
        seconds = float(row["seconds"])
        times = seconds / first.setdefault(key, seconds)
        values = row | {"times": times, "contender": f"`{row['contender']}`"}
        lines.append("| " + " | ".join(_text(values.get(name, "")) for name in names) + " |")
    return "\n".join(lines) + "\n"


def plot_lengths(rows: list[Row], file: Path) -> None:
    """Time a token against the length of a sequence at equal total, and against their number."""
    if not rows:
        return
    figure = Figure(figsize=(7.5, 3), layout="constrained")
    most = max(int(row["tokens"]) for row in rows)
    panels = figure.subplots(1, 2)

    def per_token(row: Row) -> float:
        return float(row["seconds"]) / int(row["tokens"])

    kinds = (("tokens of a sequence, equal total", 1), ("sequences of one length", 0))
    for panel, (label, place) in zip(panels, kinds, strict=True):
        mine = [row for row in rows if (int(row["tokens"]) == most) == (place == 1)]
        for model in dict.fromkeys(row["model"] for row in mine):
            points = sorted(
                (int(row["case"].split(" x ")[place]), 1e6 * per_token(row))
                for row in mine
                if row["model"] == model
            )
            panel.plot(*zip(*points, strict=True), marker="o", label=model)
        panel.set_xscale("log", base=2)
        panel.set_ylim(bottom=0)
        panel.set_xlabel(label)
        panel.set_ylabel("µs a token, forward + backward")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].legend(fontsize=8, frameon=False)
    figure.savefig(file, dpi=130, format="png")


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
