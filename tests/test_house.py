"""The laws of CONTRIBUTING.md, kept by the syntax tree: see house_rules.py for what each one says.

Every checker is also run on a snippet it must flag, so that a checker which finds nothing is known
to be looking.
"""

import ast
import functools
import subprocess
import sys

import pytest
from house_files import FILE_CHECKERS, unread_settings
from house_rules import CHECKERS, ROOT, imports, module_name

BROKEN = [
    ("check_directions", "kernels/ops/x.py", "import trainer.step"),
    ("check_directions", "kernels/ops/x.py", "from ..torch_ref import x"),
    ("check_directions", "kernels/torch_ref/x.py", "from kernels.dispatch import select"),
    ("check_directions", "trainer/step.py", "from kernels import ops"),
    ("check_directions", "trainer/types.py", "def f():\n    from . import lcpo"),
    ("check_directions", "trainer/config.py", "from .types import MODES"),
    ("check_directions", "trainer/grading/x.py", "from trainer.packing import pack"),
    ("check_directions", "trainer/loop.py", "import tests.numerics.golden"),
    ("check_directions", "tests/test_x.py", "import bench.step"),
    ("check_restricted_packages", "trainer/loop.py", "def f():\n    from hydra import compose"),
    ("check_restricted_packages", "bench/step.py", "from omegaconf import OmegaConf"),
    ("check_restricted_packages", "kernels/ops/x.py", "def f():\n    import triton"),
    ("check_grading_is_light", "trainer/grading/x.py", "def f():\n    import torch.nn"),
    ("check_function_length", "trainer/x.py", "def f():\n" + "    x = 1\n" * 61),
    ("check_function_length", "kernels/x.py", "class A:\n  def f():\n" + "    x = 1\n" * 161),
    ("check_public_functions", "trainer/x.py", 'def f(a) -> int:\n    """Doc."""'),
    ("check_public_functions", "trainer/x.py", 'def f(a: int):\n    """Doc."""'),
    ("check_public_functions", "kernels/x.py", "def f(a: int) -> int:\n    return a"),
    ("check_public_functions", "trainer/x.py", "class A:\n    def f(self) -> int:\n        ..."),
    ("check_excepts", "trainer/x.py", "try:\n    f()\nexcept:\n    pass"),
    ("check_excepts", "trainer/x.py", "try:\n    f()\nexcept (OSError, Exception):\n    raise"),
    ("check_excepts", "tests/x.py", "with contextlib.suppress(BaseException):\n    f()"),
    ("check_unsafe", "trainer/x.py", "x = eval(text)"),
    ("check_unsafe", "trainer/x.py", "import pickle"),
    ("check_unsafe", "trainer/x.py", "from torch import load"),
    ("check_unsafe", "trainer/x.py", "x = torch.load(path, weights_only=True)"),
    ("check_unsafe", "trainer/x.py", "from sympy.parsing.latex import parse_expr as p"),
    ("check_unsafe", "trainer/run.py", "x = hydra.utils.instantiate(conf)"),
    ("check_unsafe", "kernels/x.py", "subprocess.run(line, shell=True)"),
    ("check_unsafe", "trainer/x.py", "M.from_pretrained(path, trust_remote_code=flag)"),
    ("check_globals", "kernels/cpp_impl/x.py", "def f():\n    global LIBRARY\n    LIBRARY = 1"),
    ("check_spellings", "trainer/packing.py", "def f(pos_ids): ..."),
]
BROKEN_FILES = [
    ("check_file_length", "kernels/csrc/x.cpp", b"\n" * 301),
    ("check_file_size", "docs/x.png", bytes(6 * 2**20 + 1)),
    (
        "check_machine_paths",
        "docs/x.md",
        b"see /wo" + b"rk/data",
    ),  # apart: this file is checked too
    ("check_no_target", "conf/model/x.yaml", b"_target_: os.remove"),
    ("check_experiment_length", "conf/experiment/x.yaml", b"seed: 1\n"),
    ("check_no_test_package", "tests/kernels/__init__.py", b""),
    ("check_no_shadowing_folder", "kernels/triton/x.py", b""),
]
FINE = """
import re, torch
def f(a: int, *, b: str = "") -> int:
    '''Doc.'''
    model.eval()
    re.compile(b)
    tokenizer.from_pretrained(b, trust_remote_code=False)
    try:
        return a
    except (OSError, ValueError):
        return 0
class A:
    @property
    def size(self) -> int:
        return 1
    def _private(self, a): return a
"""


def name_of(checker) -> str:
    return checker.__name__


@functools.cache
def tracked() -> dict[str, bytes]:
    """Files in git or about to be. A copy without .git cannot tell them apart, and says so."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: nothing says which files are the project's")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    files = (name for name in listed.splitlines() if (ROOT / name).is_file())
    return {name: (ROOT / name).read_bytes() for name in files}


@functools.cache
def sources() -> dict[str, ast.Module]:
    """The Python files among them, parsed."""
    return {name: ast.parse(data) for name, data in tracked().items() if name.endswith(".py")}


def report(findings: list[str]) -> None:
    """Fails with one finding a line."""
    if findings:
        pytest.fail("\n".join(findings), pytrace=False)


@pytest.mark.parametrize("checker", CHECKERS, ids=name_of)
def test_law_of_code(checker):
    assert {"trainer/types.py", "kernels/__init__.py"} <= set(sources())
    report([finding for path, tree in sources().items() for finding in checker(path, tree)])


@pytest.mark.parametrize("checker", FILE_CHECKERS, ids=name_of)
def test_law_of_files(checker):
    assert {"pyproject.toml", "conf/experiment/l1_exact.yaml"} <= set(tracked())
    report([finding for path, data in tracked().items() for finding in checker(path, data)])


@pytest.mark.parametrize(("name", "path", "code"), BROKEN, ids=[f"{n}:{c}" for n, _, c in BROKEN])
def test_code_checker_flags_what_it_is_for(name, path, code):
    checker = {checker.__name__: checker for checker in CHECKERS}[name]
    assert checker(path, ast.parse(code)), f"{name} accepts {code!r}"


@pytest.mark.parametrize(("name", "path", "data"), BROKEN_FILES, ids=[n for n, *_ in BROKEN_FILES])
def test_file_checker_flags_what_it_is_for(name, path, data):
    checker = {checker.__name__: checker for checker in FILE_CHECKERS}[name]
    assert checker(path, data)
    assert checker("trainer/loop.py", FINE.encode()) == []


@pytest.mark.parametrize("checker", CHECKERS, ids=name_of)
def test_code_checker_passes_good_code(checker):
    assert checker("trainer/loop.py", ast.parse(FINE)) == []


def test_every_checker_has_a_negative_control():
    shown = {name for name, *_ in [*BROKEN, *BROKEN_FILES]}
    assert shown == {checker.__name__ for checker in (*CHECKERS, *FILE_CHECKERS)}


def test_relative_imports_are_resolved():
    code = "from ..dispatch import select\nfrom . import x"
    found = {module for _, module in imports("kernels/ops/__init__.py", ast.parse(code))}
    assert found == {"kernels.dispatch", "kernels.ops"}


def test_every_setting_is_read():
    config = ast.parse("class OptimSettings:\n    lr: float\n    momentum: float")
    assert unread_settings(config, [ast.parse("optim.lr")]) == ["momentum"]
    trainer = {path: tree for path, tree in sources().items() if path.startswith("trainer/")}
    unread = unread_settings(trainer.pop("trainer/config.py"), list(trainer.values()))
    report([f"trainer/config.py: nobody reads {field}; use it or remove it" for field in unread])


LIGHT = """
import importlib, pathlib, sys
for name in {grading}:
    importlib.import_module(name)
print([m for m in ("torch", "transformers", "triton", "kernels") if m in sys.modules])
import kernels
print([m for m in ("triton", "trainer.step") if m in sys.modules])
maps = pathlib.Path("/proc/self/maps")  # Linux only; elsewhere the lists above are the check
lines = maps.read_text().splitlines() if maps.exists() else []
print([line for line in lines if line.endswith(".so") and {folder} in line])
"""


def test_imports_stay_light():
    """Grading workers load no torch; `import kernels` loads neither triton nor compiled code."""
    grading = [module_name(path) for path in sources() if path.startswith("trainer/grading/")]
    assert grading
    code = LIGHT.format(grading=grading, folder=repr(f"{ROOT}/kernels"))
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (ran.stdout, ran.returncode) == ("[]\n[]\n[]\n", 0), ran.stdout + ran.stderr
