"""The list of versions, the targets of the Makefile, and the contents of the packages."""

from __future__ import annotations

import re
import subprocess
import tomllib
from importlib import resources
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def _pins() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {}
    for line in lines:
        if line.startswith("#"):
            continue
        match = re.fullmatch(r"([A-Za-z0-9._-]+)==([0-9][A-Za-z0-9.]*)", line)
        assert match, f"constraints.txt holds names and versions only, not {line!r}"
        name = canonicalize_name(match[1])
        assert name not in pins, f"{name} stands there twice"
        pins[name] = Version(match[2])
    return pins


def test_every_direct_requirement_is_pinned_to_a_version_that_it_allows() -> None:
    pins = _pins()
    project = PROJECT["project"]
    wanted = [*PROJECT["build-system"]["requires"], *project["dependencies"]]
    for extra in ("ray", "tensorboard", "test", "lint"):
        wanted += [line for line in project["optional-dependencies"][extra] if not line.startswith("fasttransfer[")]
    for requirement in map(Requirement, wanted):
        assert requirement.url is None
        assert pins[canonicalize_name(requirement.name)] in requirement.specifier, requirement


def test_package_data_is_there() -> None:
    package = resources.files("fasttransfer")
    for pattern in PROJECT["tool"]["setuptools"]["package-data"]["fasttransfer"]:
        assert any(Path(str(package)).glob(pattern)), f"nothing matches {pattern}"


@pytest.mark.parametrize("target", ["help", "grid", "test", "sanitize", "lint", "format", "bench", "bench-check"])
def test_targets(target: str) -> None:
    done = subprocess.run(
        ["make", "--dry-run", "--always-make", target], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    if target != "help":  # each of the others sets up what it needs
        assert "-m venv .venv" in done.stdout
        assert "--constraint constraints.txt" in done.stdout


@pytest.fixture
def bare_tree(tmp_path: Path) -> Path:
    """`make` checks the machine before it sets anything up."""
    for name in ("Makefile", "pyproject.toml", "setup.py", "constraints.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "csrc").mkdir()
    return tmp_path


def _make_test(tree: Path, assignment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", "test", assignment], cwd=tree, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("assignment", "says"),
    [("PYTHON=no-such-python", "install Python 3.11 or newer"), ("CXX=no-such-compiler", "no C++ compiler")],
)
def test_what_is_missing_is_named(bare_tree: Path, assignment: str, says: str) -> None:
    done = _make_test(bare_tree, assignment)
    assert done.returncode == 2
    assert says in done.stderr
    assert not (bare_tree / ".venv").exists()


def test_an_old_python_is_named(bare_tree: Path) -> None:
    old = bare_tree / "old-python"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.1\nexit 1\n')
    old.chmod(0o755)
    done = _make_test(bare_tree, f"PYTHON={old}")
    assert done.returncode == 2
    assert "is Python 3.9.1, 3.11 or newer is needed" in done.stderr
