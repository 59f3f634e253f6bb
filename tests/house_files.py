"""The laws about whole files, next to those about code in house_rules.py.

A checker takes a path relative to the repository and the file's bytes, and returns findings.
"""

from __future__ import annotations

import ast
import re
from pathlib import PurePosixPath

CODE = {".py", ".cpp", ".h", ".hpp", ".c", ".cu", ".cuh", ".sh", ".cmake"}
MAX_FILE_LINES = 300
MAX_MIB = 6
EXPERIMENT_LINES = range(10, 31)
MACHINE_PATH = re.compile(rb"(?<![\w.~}-])/(?:work|root|home/\w+|Users/\w+)/")


def check_file_length(path: str, data: bytes) -> list[str]:
    """A file is read in one sitting."""
    lines = len(data.splitlines())
    if PurePosixPath(path).suffix not in CODE or lines <= MAX_FILE_LINES:
        return []
    return [f"{path}: {lines} lines, the limit is {MAX_FILE_LINES}; split it by subject"]


def check_file_size(path: str, data: bytes) -> list[str]:
    """A clone stays small: what a command can make is not kept."""
    if len(data) <= MAX_MIB * 2**20:
        return []
    return [f"{path}: {len(data) / 2**20:.1f} MiB, the limit is {MAX_MIB}; commit what makes it"]


def check_machine_paths(path: str, data: bytes) -> list[str]:
    """Nothing names a folder that exists on one machine only."""
    return [
        f"{path}:{number}: a path of one machine; make it relative to the repository"
        for number, line in enumerate(data.splitlines(), 1)
        if b"\0" not in data and MACHINE_PATH.search(line)
    ]


def check_no_target(path: str, data: bytes) -> list[str]:
    """A configuration names values, never code."""
    if not path.startswith("conf/") or b"_target_" not in data:
        return []
    return [f"{path}: _target_ is refused; build the object in Python"]


def check_experiment_length(path: str, data: bytes) -> list[str]:
    """An experiment says what it sets and why; defaults are not repeated."""
    lines = len(data.splitlines())
    if not path.startswith("conf/experiment/") or lines in EXPERIMENT_LINES:
        return []
    return [f"{path}: {lines} lines, not 10 to 30; say what it sets, leave defaults out"]


def check_no_test_package(path: str, data: bytes) -> list[str]:
    """With tests/kernels/__init__.py, `import kernels` under pytest would find the tests."""
    found = path.startswith("tests/") and path.endswith("/__init__.py")
    return [f"{path}: remove it; it shadows the package of that name"] if found else []


def check_no_shadowing_folder(path: str, data: bytes) -> list[str]:
    """Run from kernels/, a folder called torch would be imported instead of torch."""
    taken = {"torch", "triton", "transformers", "hydra"} & set(PurePosixPath(path).parts[:-1])
    return [f"{path}: rename the folder {name}; it shadows the package" for name in sorted(taken)]


def unread_settings(config: ast.Module, readers: list[ast.Module]) -> list[str]:
    """Fields of `config`'s settings classes whose name is no attribute in any of `readers`.

    By name only: a field called like a tensor method counts as read where the method is used.
    """
    classes = (node for node in config.body if isinstance(node, ast.ClassDef))
    settings = [c for c in classes if c.name == "Config" or c.name.endswith("Settings")]
    fields = {n.target.id for c in settings for n in c.body if isinstance(n, ast.AnnAssign)}
    nodes = (node for tree in readers for node in ast.walk(tree))
    return sorted(fields - {node.attr for node in nodes if isinstance(node, ast.Attribute)})


FILE_CHECKERS = (
    check_file_length,
    check_file_size,
    check_machine_paths,
    check_no_target,
    check_experiment_length,
    check_no_test_package,
    check_no_shadowing_folder,
)
