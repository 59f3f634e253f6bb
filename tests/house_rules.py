"""The laws of CONTRIBUTING.md as checkers; test_house.py runs them on the repository.

A checker takes a path relative to the repository and the parsed file, and returns findings:
"path:line: what is wrong; what to do". So a snippet can stand for a file, and each checker is shown
a bad one that it must find.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MAX_FUNCTION_LINES = 60
MAX_KERNEL_LINES = 160

# Who may import what of this repository; the longest matching row holds. "a.*" is a and all below
# it, "a" is only the package itself: the trainer sees `kernels`, never its inside.
LAYERS = {
    "kernels.cpp_impl": ["kernels.cpp_impl.*"],
    "kernels.cuda_impl": ["kernels.cuda_impl.*"],
    "kernels.triton_impl": ["kernels.triton_impl.*"],
    "kernels.torch_ref": ["kernels.torch_ref.*"],
    "kernels.implementations": [
        "kernels.cpp_impl.*",
        "kernels.cuda_impl.*",
        "kernels.triton_impl.*",
        "kernels.torch_ref.*",
    ],
    "kernels.dispatch": [
        "kernels.implementations",
        "kernels.cpp_impl.*",
        "kernels.cuda_impl.*",
        "kernels.torch_ref.*",
    ],
    "kernels.ops": ["kernels.ops.*", "kernels.dispatch", "kernels.implementations"],
    "kernels": ["kernels.ops.*", "kernels.dispatch"],
    "trainer.types": [],
    "trainer.config": ["trainer.settings"],
    "trainer.settings": [],
    "trainer.grading": ["trainer.grading.*", "trainer.types"],
    "trainer": ["trainer.*", "kernels"],
    "bench": ["bench.*", "kernels.*", "trainer.*"],
    "tests": ["tests.*", "kernels.*", "trainer.*"],
}
# Outside packages that only some of our modules may import (tests are free to).
RESTRICTED = {
    "hydra": ["trainer.run", "trainer.settings"],
    "omegaconf": ["trainer.run", "trainer.settings"],
    "triton": ["kernels.triton_impl.*"],
}
FORBIDDEN_IN_GRADING = ("torch", "transformers", "triton", "kernels")

UNSAFE_MODULES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__"}
UNSAFE_DOTTED = {"torch.load", "torch.save", "torch.hub.load", "yaml.load", "os.system", "os.popen"}
UNSAFE_NAMES = {"sympify", "parse_expr", "instantiate"}
UNSAFE_KEYWORDS = {"shell", "trust_remote_code", "allow_pickle"}
BROAD = {"Exception", "BaseException"}
# Other spellings of FlashAttention's names, seen in the field.
SPELLINGS = {
    "cu_seq_lens": "cu_seqlens",
    "cu_lens": "cu_seqlens",
    "cum_seqlens": "cu_seqlens",
    "max_seq_lens": "max_seqlen",
    "max_seqlens": "max_seqlen",
    "block_tables": "block_table",
    "page_table": "block_table",
    "pos_ids": "position_ids",
}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(tree: ast.AST) -> Iterator[Function]:
    """Every function below `tree`, nested ones and methods included."""
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def module_name(path: str) -> str:
    """`kernels/ops/x.py` as `kernels.ops.x`, `kernels/__init__.py` as `kernels`."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def below(name: str, pattern: str) -> bool:
    """Whether module `name` is what the pattern "a" or "a.*" means."""
    package = pattern.removesuffix(".*")
    return name == package or (pattern.endswith(".*") and name.startswith(package + "."))


def imports(path: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, absolute module) of each import, also inside functions; relative ones resolved."""
    parts = module_name(path).split(".")
    package = parts if path.endswith("__init__.py") else parts[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            for alias in node.names:
                file = ROOT / f"{module}.{alias.name}".replace(".", "/")
                is_module = file.is_dir() or file.with_suffix(".py").is_file()
                name = f"{module}.{alias.name}" if is_module else module
                yield node.lineno, name


def check_directions(path: str, tree: ast.Module) -> list[str]:
    """*_impl, torch_ref <- implementations <- dispatch <- ops <- kernels <- trainer."""
    name = module_name(path)
    layer = max((row for row in LAYERS if below(name, row + ".*")), key=len, default=None)
    if layer is None:
        return []
    return [
        f"{path}:{line}: imports {target}, but {layer} may import only "
        f"{LAYERS[layer] or 'nothing of this repository'}; move the code down a layer"
        for line, target in imports(path, tree)
        if target.split(".")[0] in ("kernels", "trainer", "bench", "tests")
        and not any(below(target, allowed) for allowed in LAYERS[layer])
    ]


def check_restricted_packages(path: str, tree: ast.Module) -> list[str]:
    """hydra stays in run.py and config.py; triton in triton_impl alone."""
    found = []
    for line, target in imports(path, tree):
        package = target.split(".")[0]
        homes = RESTRICTED.get(package)
        if homes is None or path.startswith("tests/"):
            continue
        if not any(below(module_name(path), home) for home in homes):
            found.append(f"{path}:{line}: {package} may be imported only in {', '.join(homes)}")
    return found


def check_grading_is_light(path: str, tree: ast.Module) -> list[str]:
    """Grading workers start in milliseconds: no tensor library, not even lazily."""
    return [
        f"{path}:{line}: grading must not import {target}; pass plain strings and numbers in"
        for line, target in imports(path, tree)
        if path.startswith("trainer/grading") and target.split(".")[0] in FORBIDDEN_IN_GRADING
    ]


def check_function_length(path: str, tree: ast.Module) -> list[str]:
    """Lines from the first statement after the docstring to the end: documenting costs nothing."""
    limit = MAX_KERNEL_LINES if path.startswith("kernels/") else MAX_FUNCTION_LINES
    found = []
    for function in functions(tree):
        body = function.body[ast.get_docstring(function) is not None :]
        lines = function.end_lineno - body[0].lineno + 1 if body else 0
        if lines > limit:
            found.append(
                f"{path}:{function.lineno}: {function.name} has {lines} lines after its docstring, "
                f"the limit is {limit}; give its parts names"
            )
    return found


def public_functions(tree: ast.Module) -> Iterator[Function]:
    """Module-level functions and methods of public classes; a leading underscore is private."""
    for node in tree.body:
        members = node.body if isinstance(node, ast.ClassDef) else [node]
        if isinstance(node, ast.ClassDef) and node.name.startswith("_"):
            continue
        yield from (m for m in members if isinstance(m, Function) and not m.name.startswith("_"))


def check_public_functions(path: str, tree: ast.Module) -> list[str]:
    """Annotated and documented; only a one-statement property may go without a docstring.

    Triton kernels (decorated with a `jit`) are left out: their pointers have no Python type.
    """
    if not path.startswith(("kernels/", "trainer/")):
        return []
    found = []
    for function in public_functions(tree):
        decorators = [ast.unparse(decorator) for decorator in function.decorator_list]
        if any("jit" in decorator for decorator in decorators):
            continue
        tiny = len(function.body) == 1 and any("property" in name for name in decorators)
        where, args = f"{path}:{function.lineno}: {function.name}", function.args
        every = [*args.posonlyargs, *args.args, *args.kwonlyargs, args.vararg, args.kwarg]
        bare = [a.arg for a in every if a and a.annotation is None and a.arg not in ("self", "cls")]
        if function.returns is None:
            bare.append("return")
        if bare:
            found.append(f"{where} is public; annotate {', '.join(bare)}")
        if ast.get_docstring(function) is None and not tiny:
            found.append(f"{where} is public; say in a docstring what it returns, with shapes")
    return found


def check_excepts(path: str, tree: ast.Module) -> list[str]:
    """No handler that hides errors nobody thought of."""
    found = []
    for node in ast.walk(tree):
        caught: list[ast.expr] = []
        if isinstance(node, ast.ExceptHandler):
            if node.type is None:
                found.append(f"{path}:{node.lineno}: bare except; name the errors you expect")
            caught = [node.type] if node.type else []
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress"):
            caught = node.args
        names = {ast.unparse(part) for expr in caught for part in ast.walk(expr)}
        for name in sorted(BROAD & names):
            found.append(f"{path}:{node.lineno}: catches {name}; name the errors you expect")
    return found


def check_unsafe(path: str, tree: ast.Module) -> list[str]:
    """No evaluation of text, pickle, shell, remote code or instantiation by name in shipped code.

    Tests are exempt: some write the hostile files that must be refused.
    """
    if path.startswith("tests/"):
        return []
    found: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                module = node.module if isinstance(node, ast.ImportFrom) else alias.name
                dotted = f"{module}.{alias.name}"
                if (module or "").split(".")[0] in UNSAFE_MODULES:
                    found.append((node.lineno, f"import of {module}"))
                if alias.name in UNSAFE_NAMES or dotted in UNSAFE_DOTTED:
                    found.append((node.lineno, dotted))
        elif isinstance(node, ast.Name) and node.id in UNSAFE_CALLS | UNSAFE_NAMES:
            found.append((node.lineno, node.id))
        elif isinstance(node, ast.Attribute):
            dotted = ast.unparse(node)
            if dotted in UNSAFE_DOTTED or node.attr in UNSAFE_NAMES:
                found.append((node.lineno, dotted))
        elif isinstance(node, ast.keyword) and node.arg in UNSAFE_KEYWORDS:
            value = ast.unparse(node.value)
            found += [] if value == "False" else [(node.value.lineno, f"{node.arg}={value}")]
    return [
        f"{path}:{line}: {what} is unsafe on data we did not write; see CONTRIBUTING.md, Security"
        for line, what in found
    ]


def check_globals(path: str, tree: ast.Module) -> list[str]:
    """Values travel through arguments; a lazily loaded library is a functools.cache function."""
    return [
        f"{path}:{node.lineno}: global {', '.join(node.names)}; pass it, or cache a function"
        for node in ast.walk(tree)
        if isinstance(node, ast.Global)
    ]


def check_spellings(path: str, tree: ast.Module) -> list[str]:
    """FlashAttention's names throughout, so that one word finds every use."""
    found = []
    for node in ast.walk(tree):
        for name in (getattr(node, field, None) for field in ("id", "arg", "attr")):
            if name in SPELLINGS:
                found.append(f"{path}:{node.lineno}: {name} is called {SPELLINGS[name]} here")
    return found


CHECKERS = (
    check_directions,
    check_restricted_packages,
    check_grading_is_light,
    check_function_length,
    check_public_functions,
    check_excepts,
    check_unsafe,
    check_globals,
    check_spellings,
)
