from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import pytest
import torch

import fasttransfer
from fasttransfer.core import machine
from fasttransfer.study import environment


def test_the_environment_has_the_facts_of_a_bug_report() -> None:
    facts = environment.describe_environment()
    assert list(facts)[:2] == ["fasttransfer", "commit"]
    assert facts["fasttransfer"] == fasttransfer.__version__
    assert facts["python"].startswith(platform.python_version())
    assert facts["torch"] == torch.__version__.split("+")[0]
    assert facts["native library"] in {f"loaded, for {isa}" for isa in ("portable", "avx2", "avx512")}
    assert "dropout: native on the CPU" in facts["operators"]
    assert facts["cache"] == os.environ["FASTTRANSFER_CACHE"]  # need not be there yet
    assert facts["free disk"].endswith(" GiB")
    assert all(isinstance(fact, str) and fact for fact in facts.values())


def test_a_missing_package_is_not_installed() -> None:
    assert machine.version("no-such-package-fasttransfer") == "not installed"


def test_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    cpuinfo = {"model name": "A Processor", "flags": "fpu avx2 avx512f avx512_bf16 ht"}
    monkeypatch.setattr(machine, "_cpuinfo", lambda: cpuinfo)
    assert "avx512_bf16" in machine.instructions()
    assert environment.describe_environment()["processor"] == "A Processor"
    assert environment.describe_environment()["instructions"] == "avx2 avx512f avx512_bf16"
    monkeypatch.setattr(machine, "_cpuinfo", dict)
    assert not machine.instructions()
    assert environment.describe_environment()["instructions"] == "unknown"


@pytest.mark.parametrize(("isa", "left"), [("avx512", "avx2 avx512f amx_bf16"), ("avx2", "avx2"), ("portable", "none")])
def test_instructions_are_held_back(isa: str, left: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_cpuinfo", lambda: {"flags": "fpu avx avx2 fma avx512f amx_bf16"})
    monkeypatch.setenv("FASTTRANSFER_ISA", isa)
    said = environment.describe_environment()["instructions"]
    assert said == f"{left}, held back by FASTTRANSFER_ISA={isa}"


def test_commit(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        done = subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    assert environment._commit(tmp_path) == "not a checkout"
    git("init", "--quiet")
    assert environment._commit(tmp_path) == "unknown"  # nothing committed
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "--quiet", "--message", "first", "--no-verify")
    assert environment._commit(tmp_path) == git("rev-parse", "HEAD")
    (tmp_path / "file").write_text("two")
    assert environment._commit(tmp_path) == f"{git('rev-parse', 'HEAD')} with changes"
