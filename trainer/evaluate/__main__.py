"""`python -m trainer.evaluate model.path=RUN data=[math500] budgets=[512,1024] mode=exact n=16`.

Overrides as for a run; trainer/evaluate/settings.py says what each means, conf/evaluation/ holds
the defaults. Exit codes: 0 done; 2 refused, or stopped for a reason that is
said: the same command then goes on where it stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from trainer.checkpoint import CheckpointError
from trainer.evaluate.evaluation import EVALUATION, run_evaluation
from trainer.evaluate.settings import read_settings
from trainer.progress import show

WIDTH = 150  # columns of the table in a file or pipe
COLUMNS = {
    "pass1": ("pass@1", ".1%"),
    "interval": ("95%", ""),
    "mean_tokens": ("tokens", ".1f"),
    "deviation": ("deviation", ".1%"),
    "rmse": ("RMSE", ".1f"),
    "bias": ("bias", "+.1f"),
    "over": ("over", ".1%"),
    "soft_over": ("> 1.1x", ".1%"),
    "truncated": ("cut off", ".1%"),
    "correlation": ("corr", ".3f"),
}


def main(overrides: Sequence[str]) -> int:
    """The command; returns its exit code."""
    if not overrides or {"-h", "--help"} & set(overrides):
        print(__doc__)
        return 0
    try:
        folder, evaluation = run_evaluation(read_settings(overrides))
    except (ValueError, CheckpointError) as error:  # ConfigError and ApiError are ValueErrors
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    console = Console()
    if not console.is_terminal:
        console.width = WIDTH
    console.print(result_table(evaluation))
    if "cost" in evaluation:
        cost = evaluation["cost"]
        print(
            f"{cost['prompt_tokens']:,.0f} prompt and {cost['completion_tokens']:,.0f} completion "
            f"tokens, {cost['usd']:.2f} USD at the prices of api.usd_per_million_*"
        )
    print(f"done: {folder / EVALUATION}, with samples.jsonl and evaluation.csv beside it")
    return 0


def result_table(evaluation: dict[str, Any]) -> Table:
    """The rows of an evaluation with their main figures; what is not known is a dash."""
    title = Text(f"{evaluation['method']} ({evaluation['model']})")
    table = Table(title=title, title_justify="left", box=None)
    table.add_column("data")
    for heading in ("budget", "samples", *(heading for heading, _ in COLUMNS.values())):
        table.add_column(heading, justify="right")
    for row in evaluation["rows"]:
        cells = [_cell(row, key, style) for key, (_, style) in COLUMNS.items()]
        budget = str(row["budget"] or "none")
        table.add_row(Text(row["data"]), budget, f"{row['problems']} x {row['n']}", *cells)
    return table


def _cell(row: dict[str, Any], key: str, style: str) -> str:
    if key == "interval":
        return f"{100 * row['pass1_low']:.1f}–{100 * row['pass1_high']:.1f}"
    return show(row[key], style)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
