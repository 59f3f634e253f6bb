"""Results on disk: one CSV for all ops, the section of docs/benchmarks.md drawn from it, plots.

A new run of an op on a machine replaces its rows; nothing in the document is typed by hand between
the markers.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.document import write_section
from bench.plots import plot_op

COLUMNS = [
    *("op", "shape", "dtype", "contender", "pass", "ms_median", "ms_min", "peak_mib"),
    *("floor_ms", "ratio_to_floor", "machine", "torch", "threads", "omp_policy", "commit"),
]
BEGIN, END = "<!-- bench:begin, written by python -m bench -->", "<!-- bench:end -->"
TITLES = ("contender", "fwd ms", "bwd ms", "both ms", "× floor", "ours faster", "extra MiB")

Row = dict[str, Any]


def write(out: Path, op: str, rows: list[Row]) -> None:
    """Put the rows of one run of `op` into `out`, show them, and draw its plot."""
    folder = out / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "results.csv"
    place = (op, rows[0]["machine"])
    kept = [r for r in read(file) if (r["op"], r["machine"]) != place]
    every = sorted(
        [*kept, *({c: str(r.get(c, "")) for c in COLUMNS} for r in rows)],
        key=lambda r: (r["op"], r["machine"]),  # stable: the order of a run's own rows stays
    )
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(every)
    mine = [r for r in every if r["op"] == op]
    plot_op(mine, folder / f"{op}.png")
    write_section(out / "benchmarks.md", BEGIN, END, markdown(every))
    show(mine)


def read(file: Path) -> list[Row]:
    """The rows of a CSV; none when it is not there yet."""
    if not file.exists():
        return []
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def markdown(rows: list[Row]) -> str:
    """All ops: a heading, what was measured where, the plot, and a table a case."""
    parts = []
    for op in dict.fromkeys(r["op"] for r in rows):
        parts.append(f"### {op}\n\n![{op}](bench/{op}.png)\n")
        for title, table in tables([r for r in rows if r["op"] == op]):
            lines = ["| " + " | ".join(line) + " |" for line in [TITLES, *table]]
            lines.insert(1, "|---|" + "---:|" * (len(TITLES) - 1))
            parts.append("\n".join([f"{title}\n", *lines]) + "\n")
    return "\n".join(parts)


def show(rows: list[Row]) -> None:
    """The tables on the terminal."""
    console = Console()
    for title, lines in tables(rows):
        table = Table(title=title, title_justify="left")
        for number, name in enumerate(TITLES):
            table.add_column(name, justify="right" if number else "left")
        for line in lines:
            table.add_row(*line)
        console.print(table)


def tables(rows: list[Row]) -> list[tuple[str, list[tuple[str, ...]]]]:
    """(what was measured where, lines of TITLES) of each shape, dtype and machine of one op."""
    cases: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        cases.setdefault((row["shape"], row["dtype"], row["machine"]), []).append(row)
    found = []
    for (shape, dtype, where), of_case in cases.items():
        first = of_case[0]
        title = (
            f"{first['op']}, {shape}, {dtype}: {where}, {first['threads']} threads, OpenMP "
            f"{first['omp_policy']}, torch {first['torch']}, commit {first['commit']}"
        )
        names = list(dict.fromkeys(r["contender"] for r in of_case))
        by_pass = {n: {r["pass"]: r for r in of_case if r["contender"] == n} for n in names}
        ours = whole(by_pass[names[0]])
        found.append((title, [_line(name, by_pass[name], ours) for name in names]))
    return found


def whole(by_pass: dict[str, Row]) -> Row | None:
    """The row of forward and backward, or of the forward where there is no more; None if absent."""
    return by_pass.get("fwd+bwd") or by_pass.get("fwd")


def _line(name: str, by_pass: dict[str, Row], ours: Row | None) -> tuple[str, ...]:
    both = whole(by_pass)
    if both is None:
        return (name, *next(iter(by_pass)).split(": ", 1), *([""] * (len(TITLES) - 3)))
    times = [by_pass.get(p, {}).get("ms_median", "") for p in ("fwd", "bwd", "fwd+bwd")]
    gain = float(both["ms_median"]) / float(ours["ms_median"]) if ours and ours is not both else 0
    return (
        name,
        *times,
        f"{float(both['ratio_to_floor']):.2f}",
        f"{gain:.2f} ×" if gain else "",
        f"{float(both['peak_mib']):.0f}",
    )
