"""The forms of the native operators: every one that this processor can run passes the operators' tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fasttransfer.core import machine
from fasttransfer.ops import native

FORMS = ("portable", "avx2", "avx512")
HERE = Path(__file__).parent


def isa_under(value: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from fasttransfer.ops import native; print(native.isa())"],
        capture_output=True,
        text=True,
        env=os.environ | {"FASTTRANSFER_ISA": value},
    )


@pytest.mark.parametrize("form", FORMS)
def test_a_form_can_be_named(form: str) -> None:
    """A form above the processor's is its own."""
    highest = FORMS.index(isa_under("avx512").stdout.strip())
    assert isa_under(form).stdout.strip() == FORMS[min(FORMS.index(form), highest)]


def test_the_highest_form_is_the_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTTRANSFER_ISA", raising=False)
    found = set(machine.instructions())
    wanted = "avx512" if {"avx512f", "avx512bw", "avx512vl"} <= found else "avx2" if "avx2" in found else "portable"
    assert isa_under("").stdout.strip() == wanted


def test_an_unknown_form_is_refused() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "fasttransfer", "info"],
        capture_output=True,
        text=True,
        env=os.environ | {"FASTTRANSFER_ISA": "sse9"},
    )
    assert ran.returncode == 2
    assert ran.stderr == "fasttransfer: FASTTRANSFER_ISA=sse9: choose among portable, avx2, avx512\n"


@pytest.mark.parametrize("form", FORMS[:-1])
def test_lower_forms_pass_the_tests_of_the_operators(form: str) -> None:
    """All tests of this folder but those of compilation and tracing, which do not depend on the form."""
    if FORMS.index(form) >= FORMS.index(native.isa()):
        pytest.skip(f"{form} is the form of every other test, or above this processor")
    paths = [str(path) for path in sorted(HERE.glob("test_*.py")) if path.name != Path(__file__).name]
    ran = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-m",
            "not compiled",
            "-k",
            "not opcheck",
            *paths,
        ],
        capture_output=True,
        text=True,
        env=os.environ | {"FASTTRANSFER_ISA": form},
        cwd=HERE.parents[1],
    )
    assert ran.returncode == 0, ran.stdout[-5000:] + ran.stderr[-2000:]
