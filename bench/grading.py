"""`python -m bench.grading --data FOLDER`: both tiers on nasty inputs, and where they disagree.

Writes docs/grading_tables.md. `--python` names an interpreter that has math-verify; without one the
symbolic columns stay empty. Answers that both tiers should call equal are each truth of FOLDER's
*.jsonl, and one rewrite of it; those that are mostly not are each truth against the next one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from bench import machine
from bench.grading_inputs import JUDGED, NASTY, Pair, boxed_questions, pairs, read_truths
from trainer.grading.grader import undecided
from trainer.grading.parse import same_answer
from trainer.grading.pool import WorkerPool
from trainer.types import Problem

OUT = Path("docs/grading_tables.md")
ROUNDS = 5
LISTED = 60  # disagreements of one kind; the rest are counted
SECONDS, MEMORY_MIB, WORKERS = 5.0, 1024, 2  # conf/grading/default.yaml
VERSIONS = (
    "import importlib.metadata as m; print(', '.join(f'{n} {m.version(n)}' for n in "
    "('math-verify', 'latex2sympy2_extended', 'sympy', 'antlr4-python3-runtime')))"
)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.grading", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of *.jsonl")
    parser.add_argument("--python", help="interpreter with math-verify")
    parser.add_argument("--every", type=int, default=1, help="take only each n-th truth")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--worker", default="trainer.grading.symbolic", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    machine.warn_if_busy()
    rows = read_truths(args.data)[:: args.every]
    found = pairs([truth for _, truth in rows])
    symbolic = None
    if args.python:
        symbolic = WorkerPool(
            args.worker,
            workers=1,
            timeout_seconds=SECONDS,
            memory_mib=MEMORY_MIB,
            python=args.python,
        )
        symbolic.start()
    parts = [
        heading(args, len(rows)),
        timing_table(symbolic),
        agreement(found, symbolic),
        questions(rows, symbolic),
    ]
    args.out.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    print(f"wrote {args.out}")


def heading(args: argparse.Namespace, truths: int) -> str:
    """What was measured, where, and how to do it again."""
    versions = "not installed"
    if args.python:
        command = [args.python, "-c", VERSIONS]
        versions = subprocess.run(command, capture_output=True, text=True).stdout or "unknown"
    at = machine.describe(torch.device("cpu"))
    return (
        "# The two tiers of grading, measured\n\n"
        "Written by `python -m bench.grading --data FOLDER --python PYTHON`; "
        f"{truths} rows with an answer, each {args.every}. of FOLDER. Machine: {at['machine']}, "
        f"Python {sys.version.split()[0]}, commit {at['commit']}; "
        f"symbolic tier: {versions.strip()}. "
        f"A symbolic answer may take {SECONDS:g} s and {MEMORY_MIB} MiB."
    )


def timing_table(symbolic: WorkerPool | None) -> str:
    """Milliseconds of each nasty input on each tier, and what came out."""
    lines = [
        "## Nasty inputs",
        "",
        "| answer against 17 | exact, ms | symbolic, ms | symbolic says |",
    ]
    lines.append("|---|---|---|---|")
    for name, answer in NASTY.items():
        samples = []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            assert not same_answer(answer, "17")
            samples.append(time.perf_counter() - start)
        spent, verdict = "", ""
        if symbolic is not None:
            symbolic.start()  # a worker that is ready: its start is not the answer's time
            start = time.perf_counter()
            verdict = ask(symbolic, [Pair("nasty", answer, "17")])[0]
            spent = f"{1e3 * (time.perf_counter() - start):.1f}"
        exact = 1e3 * statistics.median(samples)
        lines.append(f"| {name} | {exact:.2f} | {spent} | {verdict} |")
    return "\n".join(lines)


def agreement(found: list[Pair], symbolic: WorkerPool | None) -> str:
    """How often the tiers agree on each kind of pair, and each pair where they do not."""
    start = time.perf_counter()
    exact = ["same" if same_answer(p.answer, p.truth) else "different" for p in found]
    exact_ms = 1e3 * (time.perf_counter() - start) / len(found)
    lines = ["## Agreement", ""]
    lines.append(f"The exact tier takes {exact_ms:.3f} ms a pair, mean over {len(found)} pairs.")
    if symbolic is None:
        return "\n".join(lines)
    start = time.perf_counter()
    other = ask(symbolic, found)
    other_ms = 1e3 * (time.perf_counter() - start) / len(found)
    lines.append(f"The symbolic tier takes {other_ms:.1f} ms in one worker.")
    lines += ["", "| pair | exact | symbolic | pairs |", "|---|---|---|---|"]
    counts = Counter(zip((p.kind for p in found), exact, other, strict=True))
    lines += [f"| {k} | {a} | {b} | {n} |" for (k, a, b), n in sorted(counts.items())]
    seen: Counter[str] = Counter()
    lines += [
        "",
        "### Where they differ",
        "",
        "| pair | answer | truth | exact | symbolic | right is |",
    ]
    lines.append("|---|---|---|---|---|---|")
    for pair, a, b in zip(found, exact, other, strict=True):
        if a != b:
            seen[pair.kind] += 1
            if seen[pair.kind] <= LISTED:
                cells = (pair.kind, code(pair.answer), code(pair.truth), a, b, judge(pair))
                lines.append(f"| {' | '.join(cells)} |")
    more = {kind: n - LISTED for kind, n in seen.items() if n > LISTED}
    if more:
        lines.append(f"\nNot listed: {', '.join(f'{n} more of {k}' for k, n in more.items())}.")
    return "\n".join(lines)


def judge(pair: Pair) -> str:
    """Equal by construction; what neighbours are, a person has said."""
    if pair.kind != "neighbour":
        return "same, by construction"
    return JUDGED.get((pair.answer, pair.truth), "not judged")


def questions(rows: list[tuple[str, str]], symbolic: WorkerPool | None) -> str:
    """What boxing an expression of the question itself would be paid."""
    tries = boxed_questions(rows)
    exact = [p for _, p in tries if same_answer(p.answer, p.truth)]
    lines = [
        "## Boxing the question",
        "",
        "Expressions with an operation, taken from the questions, against the question's own "
        "truth: a grader that computes pays for copying.",
        "",
        "| grader | paid | of |",
        "|---|---|---|",
        f"| exact tier | {len(exact)} | {len(tries)} |",
    ]
    if symbolic is not None:
        verdicts = ask(symbolic, [pair for _, pair in tries])
        guarded = [
            verdict
            for (question, pair), verdict in zip(tries, verdicts, strict=True)
            if undecided(pair.answer, Problem("", question, (pair.truth,)))
        ]
        paid = Counter(verdicts)["same"]
        lines.append(f"| symbolic tier by itself | {paid} | {len(tries)} |")
        both = len(exact) + Counter(guarded)["same"]
        lines.append(f"| both, as the trainer asks them | {both} | {len(tries)} |")
        asked = sum(bool(undecided("?", Problem("", "", (truth,)))) for _, truth in rows)
        lines += ["", f"The symbolic tier may be asked about {asked} of {len(rows)} truths; the "]
        lines[-1] += "others are exact numbers or words, where the exact tier has the last word."
    return "\n".join(lines)


def ask(symbolic: WorkerPool, found: Sequence[Pair]) -> list[str]:
    """The symbolic verdict on each pair, in order."""
    for key, pair in enumerate(found):
        symbolic.submit(key, pair.answer, [pair.truth])
    verdicts = symbolic.collect()
    return [verdicts[key] for key in range(len(found))]


def code(text: str) -> str:
    """A cell that shows the text as it is."""
    shown = json.dumps(text, ensure_ascii=False)[1:-1].replace("\\\\", "\\").replace("|", "\\|")
    return f"`{shown}`" if shown else ""


if __name__ == "__main__":
    main()
