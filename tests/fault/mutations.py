"""Takes each protection away and sees its test fail: `python -m tests.fault.mutations`.

mutations.yaml lists them. Each is a replacement in one file of a copy of the repository, in which
the case's test must pass before and fail after. The result is docs/reliability.md.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
FILE = Path(__file__).with_suffix(".yaml")
PAGE = ROOT / "docs" / "reliability.md"
LIBRARY = "kernels/cpp_impl/liblcpo_kernels.so"  # compiled, so not in git
TIMEOUT_S = 240
FAILED = 1  # pytest's exit code when tests failed; others mean that they did not run
SHOWN = 110  # characters of how a test failed
HEAD = """# Reliability: each case, its test, and what happens without the protection

Written by `python -m tests.fault.mutations`: for each row it takes the protection away in a copy of
the repository, a replacement in one file that
[mutations.yaml](../tests/fault/mutations.yaml) lists, and runs the test, which must have passed
before and must fail now. The last column is how it failed.

| case | fault or bad input | protection that was taken away | test | how it failed without |
|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Mutation:
    """One protection: where it is, what stands there without it, and the test that must notice."""

    case: str
    about: str
    protection: str
    file: str
    replace: str
    by: str
    test: str
    environment: dict[str, str] = field(default_factory=dict)


def load_mutations() -> list[Mutation]:
    """The entries of mutations.yaml."""
    return [Mutation(**entry) for entry in yaml.safe_load(FILE.read_text(encoding="utf-8"))]


def copy_tree(target: Path) -> None:
    """The files of the project, as a git repository of its own, and the compiled library."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in [*listed.splitlines(), LIBRARY]:
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target / name)
    subprocess.run(["git", "init", "-q"], cwd=target, check=True)


def run_test(tree: Path, mutation: Mutation) -> tuple[int, str]:
    """pytest's exit code for the mutation's test in `tree`, and the first line of its failure."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", mutation.test]
    environment = {**os.environ, "PYTHONPATH": str(tree), **mutation.environment, "COLUMNS": "300"}
    try:
        done = subprocess.run(
            command, cwd=tree, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        return FAILED, f"it hung for {TIMEOUT_S} s"
    found = re.search(r"^(?:FAILED|ERROR) .+? - (.*)$", done.stdout, re.MULTILINE)
    return done.returncode, found[1] if found else done.stdout[-2000:] + done.stderr[-2000:]


def mutate(tree: Path, mutation: Mutation) -> str:
    """Apply the mutation in `tree`; the text of the file as it was."""
    path = tree / mutation.file
    text = path.read_text(encoding="utf-8")
    assert text.count(mutation.replace) == 1, f"{mutation.file}: {mutation.replace!r} is not unique"
    path.write_text(text.replace(mutation.replace, mutation.by), encoding="utf-8")
    return text


def try_mutation(tree: Path, mutation: Mutation) -> str:
    """How the test failed without the protection; AssertionError when it did not, or before."""
    code, output = run_test(tree, mutation)
    assert code == 0, f"{mutation.test} fails with the protection in place: {output}"
    before = mutate(tree, mutation)
    try:
        code, output = run_test(tree, mutation)
    finally:
        (tree / mutation.file).write_text(before, encoding="utf-8")
    assert code == FAILED, f"{mutation.case}: {mutation.test} does not notice ({code}): {output}"
    return output


def row(mutation: Mutation, failure: str) -> str:
    """A line of the page."""
    file, _, test = mutation.test.partition("::")
    failure = re.sub(r"/\S*/", "…/", " ".join(failure.split()))  # no path of this machine
    failure = failure if len(failure) <= SHOWN else failure[: SHOWN - 1] + "…"
    cells = [
        mutation.case,
        mutation.about,
        f"{mutation.protection} ({mutation.file})",
        f"[{test}](../{file})",
        f"`{failure.replace('`', chr(39))}`",
    ]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def start_of(line: str) -> str:
    """A row without its last cell: what mutations.yaml says of it."""
    return line.rpartition(" | ")[0]


def rows_by_mutation(page: Path) -> dict[str, str]:
    """The rows of a page that was written before, by what the list says of them."""
    if not page.exists():
        return {}
    lines = page.read_text(encoding="utf-8").splitlines(keepends=True)
    return {start_of(line): line for line in lines if line.startswith("| ")}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 1 when a protection can be taken away unnoticed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", action="append", help="only these; other rows of the page stay")
    args = parser.parse_args(arguments)
    lines, unnoticed, known = [], 0, rows_by_mutation(PAGE)
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        copy_tree(tree)
        for mutation in load_mutations():
            if args.case and mutation.case not in args.case:
                lines.append(known[start_of(row(mutation, ""))])
                continue
            try:
                failure = try_mutation(tree, mutation)
            except AssertionError as error:
                unnoticed += 1
                failure = f"NOT NOTICED: {error}"
            lines.append(row(mutation, failure))
            print(lines[-1], end="", flush=True)
    if not unnoticed:
        PAGE.write_text(HEAD + "".join(lines), encoding="utf-8")
        print(f"wrote {PAGE.relative_to(ROOT)}")
    return 1 if unnoticed else 0


if __name__ == "__main__":
    sys.exit(main())
