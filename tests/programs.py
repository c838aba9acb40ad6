"""Small C++ programs that include headers of csrc/, for what the operators do on other processors than this one."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[1] / "csrc"


def run_program(folder: Path, source: str, *, sanitized: bool = False) -> str:
    """Compile a program in `folder` and run it, with sanitizers where the compiler has them; return its output."""
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        pytest.skip("no C++ compiler")
    code, program = folder / "program.cpp", folder / "program"
    code.write_text(source)
    plain = [compiler, "-std=c++20", "-O1", f"-I{CSRC}", code, "-o", program]
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    if not sanitized or subprocess.run([*plain, *sanitizers], capture_output=True).returncode:
        subprocess.run(plain, check=True)
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    ran = subprocess.run(
        [program], capture_output=True, text=True, env=environment | {"ASAN_OPTIONS": "detect_leaks=0"}
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout
