"""`python -m trainer.report RUN… --out FOLDER`: one HTML file and the PNGs of its figures."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.report.figures import draw_charts, save_png
from trainer.report.library import build_library
from trainer.report.page import render_page
from trainer.report.sources import load_sources
from trainer.samples import clean, positive

if TYPE_CHECKING:
    from collections.abc import Sequence

PAGE = "report.html"


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code: 0, or 2 with a message when a folder cannot be shown."""
    args = _parser().parse_args(argv)
    try:
        page = write_report(args.runs, args.out, args.samples)
    except (ValueError, OSError) as error:
        print(f"report: {clean(str(error))}", file=sys.stderr)
        return 2
    print(f"{page} ({page.stat().st_size / 2**20:.1f} MiB), and its figures as PNG beside it")
    return 0


def write_report(runs: Sequence[Path], out: Path, samples: int) -> Path:
    """Write FOLDER/report.html and a PNG a figure; returns the page's path.

    `samples` bounds how many are in the page. Raises ValueError naming the folder or file that
    cannot be shown, before anything is written, and OSError.
    """
    sources = load_sources(runs)
    library = build_library(sources, samples)
    charts = draw_charts(sources)
    out.mkdir(parents=True, exist_ok=True)
    for chart in charts:
        save_png(chart, out)
    page, partial = out / PAGE, out / f"{PAGE}.tmp"
    partial.write_text(render_page(sources, charts, library), encoding="utf-8")
    os.replace(partial, page)
    return page


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trainer.report",
        description="One HTML file, which needs no network, and PNGs of runs and evaluations.",
    )
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="run or evaluation folder"
    )
    default = Path("runs/report")
    parser.add_argument("--out", type=Path, default=default, help=f"folder (default {default})")
    parser.add_argument(
        "--samples", type=positive, default=1000, help="at most so many in the file (default 1000)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
