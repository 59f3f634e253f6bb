"""`python -m trainer.plan +experiment=l1_exact scale=paper hardware=8xh100 price_per_hour=2.5`

The price of a run before it is paid: memory by part, seconds by phase, hours and dollars, and what
to set where it does not fit. Needs no GPU and downloads nothing. Overrides as for a run;
hardware=NAME takes conf/hardware/NAME.yaml, and further keys are those of conf/plan/default.yaml:
response_tokens=2050 prompt_tokens=150 shape=FOLDER json=FILE png=FILE.
Exit codes: 0 it fits, 1 it does not, 2 refused.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from trainer.plan.plan import as_json, make_plan
from trainer.plan.show import draw, lines, tables


def main(overrides: Sequence[str]) -> int:
    """The command; returns its exit code."""
    if not overrides or {"-h", "--help"} & set(overrides):
        print(__doc__)
        return 0
    try:
        plan = make_plan(overrides)
    except (ValueError, RuntimeError) as error:  # ConfigError is a ValueError
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    console = Console()
    for table in tables(plan):
        console.print(table)
    for line in lines(plan):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    files = plan.memory.asked.plan
    if files.json:
        Path(files.json).write_text(json.dumps(as_json(plan), indent=1) + "\n", encoding="utf-8")
    if files.png:
        draw(plan, Path(files.png))
    return 0 if plan.memory.fits else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
