"""`python -m tests.fuzz --seconds 60`: hostile inputs to every reader; exit code 1 on a find."""

from __future__ import annotations

import argparse
import faulthandler
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.fuzz.engine import make_input, run_case, run_target
from tests.fuzz.targets import targets

STUCK_SECONDS = 120  # without Python code running no Hang can be raised: say where, and end
SHOWN_CHARS = 500


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 1 when an input was found that crashes, hangs or is misread."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="shared by the targets")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="targets, comma separated")
    parser.add_argument("--case", type=int, help="one case again, by its number")
    args = parser.parse_args(arguments)
    chosen = [t for t in targets() if not args.only or t.name in args.only.split(",")]
    found = 0
    for target in chosen:
        if args.case is not None:
            text = make_input(target, args.seed, args.case)
            with tempfile.TemporaryDirectory() as folder:
                outcome = run_case(target, text, Path(folder))
            print(f"{target.name}: {text[:SHOWN_CHARS]!r}\n{outcome or 'read'}")
            continue
        patience = STUCK_SECONDS + args.seconds
        faulthandler.dump_traceback_later(patience, exit=True, file=sys.__stderr__)
        summary = run_target(target, args.seconds / len(chosen), args.seed)
        print(
            f"{target.name:10} {summary.seconds:5.0f} s, {summary.cases:7} cases, "
            f"{summary.refused:7} refused, "
            f"slowest {1e3 * summary.slowest:.0f} ms (--case {summary.slowest_number}), "
            f"{len(summary.found)} found",
            flush=True,
        )
        for one in summary.found:
            print(f"\n== {one.target} --seed {one.seed} --case {one.number}\n{one.error}")
            print(f"shrunk to: {one.text[:SHOWN_CHARS]!r}\n", flush=True)
        found += len(summary.found)
    faulthandler.cancel_dump_traceback_later()
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
