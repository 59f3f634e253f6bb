"""Builds kernels/csrc into kernels/cpp_impl when a C++ compiler is there; all else is pyproject.

Without a compiler the package installs all the same and its ops run on the torch backend. Needs
no torch at build time, so it works under build isolation.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
LIBRARY = "kernels.cpp_impl.liblcpo_kernels"


class BuildLibrary(build_ext):
    """Runs CMake, or the compiler itself where there is no CMake."""

    def get_ext_filename(self, fullname: str) -> str:
        """A plain C library carries no Python version in its name."""
        return os.path.join(*fullname.split(".")) + ".so"

    def build_extension(self, ext: Extension) -> None:
        """Build the library; on failure say so in one line and go on without it."""
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        named = os.environ.get("CXX", "c++").split()[0]
        compiler = next(filter(None, map(shutil.which, (named, "g++", "clang++"))), None)
        if compiler is None:
            return notice("no C++ compiler found")
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(self.build_temp).resolve() / "csrc"
        try:
            if shutil.which("cmake"):
                build_with_cmake(work, target)
            else:
                build_with_compiler(compiler, target)
        except subprocess.CalledProcessError as error:
            notice(f"`{' '.join(map(str, error.cmd))}` failed")


def build_with_cmake(work: Path, target: Path) -> None:
    """Configure and build in `work`, then copy the library to `target`."""
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    options = ["-DLCPO_BUILD_TESTS=OFF", "-DCMAKE_BUILD_TYPE=Release"]
    subprocess.run(["cmake", "-S", ROOT, "-B", work, *generator, *options], check=True)
    subprocess.run(["cmake", "--build", work, "--parallel"], check=True)
    shutil.copyfile(work / target.name, target)


def build_with_compiler(compiler: str, target: Path) -> None:
    """The same sources and flags as CMakeLists.txt, one command a source."""
    flags = ["-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fopenmp"]
    flags += ["-fPIC", "-fvisibility=hidden"]
    objects = []
    with tempfile.TemporaryDirectory() as work:
        for source in sorted((ROOT / "kernels" / "csrc").glob("*.cpp")):
            objects.append(Path(work) / f"{source.stem}.o")
            contract = "fast" if source.stem == "gemm" else "off"
            command = [compiler, *flags, f"-ffp-contract={contract}", "-c", source]
            subprocess.run([*command, "-o", objects[-1]], check=True)
        subprocess.run([compiler, "-shared", "-fopenmp", *objects, "-o", target], check=True)


def notice(reason: str) -> None:
    """One line; pip shows it with -v, and the first CPU op repeats the gist of it."""
    print(f"lcpo-trainer: {reason}: C++ kernels not built, CPU ops use torch", file=sys.stderr)


setup(
    # optional: a library that was not built is no error
    ext_modules=[Extension(LIBRARY, sources=[], optional=True)],
    cmdclass={"build_ext": BuildLibrary},
)
