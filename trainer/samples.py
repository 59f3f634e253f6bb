"""Read a run's rollouts in the terminal: `python -m trainer.samples RUN --reason wrong`.

Shows what samples.jsonl holds: question, tokens asked for and used, verdict and reason, every term
of the reward, and the text with its thinking dimmed and its answer highlighted. What a model wrote
is shown as plain characters: no markup is interpreted, no control character reaches the terminal.
"""

from __future__ import annotations

import argparse
import sys
import unicodedata
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from trainer.grading import REASONS
from trainer.record import SAMPLES, iter_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

SORTS = ("deviation", "tokens", "reward", "advantage")
_THINK_END = "</think>"
# Control, surrogate and format characters: escapes, halves of a character, and what reorders text.
_UNPRINTABLE = ("Cc", "Cs", "Cf")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code: 0, or 2 with a message when there is nothing to show."""
    args = _parser().parse_args(argv)
    try:
        rows = load_step(args.run, args.step)
        chosen = select(rows, args.group, args.budget, args.reason)
    except ValueError as error:
        print(f"samples: {clean(str(error))}", file=sys.stderr)
        return 2
    if args.sort:
        chosen.sort(key=lambda row: _sort_value(row, args.sort), reverse=True)
    console = Console()
    for row in chosen[: args.limit]:
        console.print(render(row))
    if len(chosen) > args.limit:
        console.print(
            f"{args.limit} of {len(chosen)} samples shown; --limit shows more", style="dim"
        )
    return 0


def load_step(run: Path, step: int | None) -> list[dict[str, Any]]:
    """The samples of one step, by default the last one. Raises ValueError when there are none."""
    path = run / SAMPLES
    if not run.is_dir():
        raise ValueError(f"{run}: no such run folder")
    if not path.is_file():
        raise ValueError(f"{run}: no {SAMPLES} in it: not a run folder, or no step is done yet")
    rows: list[dict[str, Any]] = []
    first = last = None
    for row in iter_rows(path):
        first = row["step"] if first is None else first
        if step is None and row["step"] != last:
            rows.clear()
        if step is None or row["step"] == step:
            rows.append(row)
        last = row["step"]
    if last is None:
        raise ValueError(f"{path}: no samples yet")
    if not rows:
        raise ValueError(f"{path}: no samples of step {step}; there are steps {first} to {last}")
    return rows


def select(
    rows: list[dict[str, Any]], group: int | None, budget: int | None, reason: str | None
) -> list[dict[str, Any]]:
    """The rows that match every given value. Raises ValueError saying what there is instead."""
    wanted = {"group": group, "budget": budget, "reason": reason}
    wanted = {key: value for key, value in wanted.items() if value is not None}
    chosen = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    if not chosen:
        asked = ", ".join(f"{key} {value}" for key, value in wanted.items())
        there = "; ".join(f"{key} {_counts(rows, key)}" for key in wanted)
        raise ValueError(f"step {rows[0]['step']} has no sample with {asked}; there are: {there}")
    return chosen


def deviation(row: dict[str, Any]) -> float:
    """Tokens away from the budget as a share of it; under the budget counts only in mode exact."""
    if row["mode"] == "none":
        return 0.0
    over = (row["tokens"] - row["budget"]) / row["budget"]
    return abs(over) if row["mode"] == "exact" else max(over, 0.0)


def render(row: dict[str, Any]) -> Panel:
    """A sample as a panel. Everything that comes from the file goes through `clean` into Text."""
    colour = _colour(row)
    mark = "✔" if colour == "green" else "✘"
    expected = " or ".join(_quoted(answer) for answer in row["answers"])
    verdict = Text.assemble(
        (f"{mark} {clean(row['reason'])}", f"bold {colour}"),
        f"  answered {_quoted(row['extracted'])}, expected {expected}",
    )
    terms = ("correctness", "length", "reward", "advantage")
    head = Table.grid(padding=(0, 2))
    head.add_row("question", Text(clean(row["question"])))
    head.add_row("tokens", _tokens(row))
    head.add_row("verdict", verdict)
    head.add_row("reward", Text("  ".join(f"{key} {_number(row[key])}" for key in terms)))
    title = f"step {row['step']} · group {row['group']} · sample {row['sample']} · {row['problem']}"
    return Panel(
        Group(head, Text(), _highlighted(row)),
        title=Text(clean(title).replace("\n", " ")),
        title_align="left",
        border_style=colour,
    )


def clean(text: str) -> str:
    """`text` without the characters that control a terminal; newlines and tabs stay."""
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) not in _UNPRINTABLE)


def parts(text: str, reason: str, extracted: str | None) -> tuple[int, int, int]:
    """Where in `text` the thinking ends, and where the graded answer starts and ends.

    No thinking ends at 0; an answer that is not to be found starts where it ends.
    """
    thinking = text.rfind(_THINK_END) + len(_THINK_END)
    if thinking < len(_THINK_END):  # no tag
        thinking = len(text) if reason == "no_think" else 0
    box = max(text.rfind("\\boxed", thinking), text.rfind("\\fbox", thinking))
    start = text.find(extracted, box) if extracted and box >= 0 else -1
    return (thinking, start, start + len(extracted)) if start >= 0 else (thinking, *[thinking] * 2)


def _highlighted(row: dict[str, Any]) -> Text:
    """The text: thinking dim, the answer that was graded bold in the colour of the verdict."""
    text = row["text"]
    thinking, start, end = parts(text, row["reason"], row["extracted"])
    return Text.assemble(
        (clean(text[:thinking]), "dim"),
        clean(text[thinking:start]),
        (clean(text[start:end]), f"bold reverse {_colour(row)}"),
        clean(text[end:]),
    )


def _colour(row: dict[str, Any]) -> str:
    return "green" if row["reason"] == "correct" else "red"


def _tokens(row: dict[str, Any]) -> Text:
    used = row["tokens"]
    if row["mode"] == "none":
        text = Text(f"{used} used, no budget")
    else:
        share = (used - row["budget"]) / row["budget"]
        text = Text(f"{used} used, {row['budget']} asked ({clean(row['mode'])})  {share:+.1%}")
    if row["truncated"]:
        text.append("  truncated", style="bold yellow")
    return text


def _quoted(answer: str | None) -> str:
    return "nothing" if answer is None else f"“{clean(answer)}”"


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"


def _sort_value(row: dict[str, Any], key: str) -> float:
    """What to sort by; a value that was not finite (None) comes first, it needs to be seen."""
    value = deviation(row) if key == "deviation" else row[key]
    return float("inf") if value is None else value


def _counts(rows: list[dict[str, Any]], key: str) -> str:
    """How often each value of `key` occurs, the most frequent ten. Example: "8 (16), 32 (16)"."""
    return ", ".join(f"{value} ({n})" for value, n in Counter(r[key] for r in rows).most_common(10))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trainer.samples", description="Show the rollouts of a run."
    )
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--step", type=int, help="the step to show; the last one if left out")
    parser.add_argument("--group", type=int, help="only the samples of this group")
    parser.add_argument("--budget", type=int, help="only samples asked for this many tokens")
    parser.add_argument("--reason", choices=REASONS, help="only samples graded so")
    parser.add_argument("--limit", type=positive, default=5, help="at most so many (default 5)")
    parser.add_argument("--sort", choices=SORTS, help="the highest first, instead of file order")
    return parser


def positive(text: str) -> int:
    """A number for argparse, at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


if __name__ == "__main__":
    sys.exit(main())
