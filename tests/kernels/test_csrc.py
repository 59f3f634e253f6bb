"""Builds csrc with CMake under the address and undefined-behaviour sanitizers and runs CTest."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TESTS = [path.stem for path in sorted(Path(__file__).parent.glob("csrc_*test.cpp"))]


def test_csrc_under_sanitizers(tmp_path):
    missing = [tool for tool in ("cmake", "ctest", "c++") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    for command in (
        ["cmake", "-S", ROOT, "-B", tmp_path, *generator, "-DLCPO_SANITIZE=ON"],
        ["cmake", "--build", tmp_path, "--parallel", str(os.cpu_count()), "--target", *TESTS],
        ["ctest", "--test-dir", tmp_path, "--output-on-failure", "--no-tests=error"],
    ):
        ran = subprocess.run(command, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stdout + ran.stderr
