from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fasttransfer
from fasttransfer import native

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = next(Path(fasttransfer.__file__).parent.glob("_native_cpu*"), None)


def test_the_library_is_built_and_loaded() -> None:
    assert native.why_not() == ""
    assert native.available()
    assert set(native.operators()) == set(native.SCHEMAS)
    assert all("native on the CPU" in where for where in native.operators().values())


def test_schemas_are_those_of_the_library() -> None:
    source = (ROOT / "csrc" / "schemas.cpp").read_text()
    defined = dict(re.findall(r'm\.def\("(\w+)(\(.*?)"\)', source))
    assert defined == native.SCHEMAS
    for name, schema in native.SCHEMAS.items():
        assert str(getattr(torch.ops.fasttransfer, name).default._schema) == f"fasttransfer::{name}{schema}"


def test_a_library_that_is_not_there(tmp_path: Path) -> None:
    assert "is not built" in native.load_library(tmp_path)


@pytest.mark.skipif(platform.system() != "Linux", reason="about ELF files")
@pytest.mark.parametrize(
    ("at", "old", "new", "says"),
    [
        (18, None, b"\xff", "built for another platform"),  # another processor
        (4, b"\x02", b"\x01", "built for another platform"),  # 32 bits
        (0, b"\x7fELF", b"\xcf\xfa\xed\xfe", "built for another platform"),  # another system
        (None, b"torch_library_impl\0", b"torch_library_none\0", "does not load under PyTorch"),  # too old
    ],
    ids=["processor", "32-bit", "system", "symbol"],
)
def test_a_library_that_does_not_load(tmp_path: Path, at: int | None, old: bytes | None, new: bytes, says: str) -> None:
    assert LIBRARY is not None
    elf = LIBRARY.read_bytes()
    start = elf.index(old) if at is None else at
    assert old is None or elf[start : start + len(new)] == old
    copy = tmp_path / LIBRARY.name
    copy.write_bytes(elf[:start] + new + elf[start + len(new) :])
    reason = native.load_library(tmp_path)
    assert reason.startswith(str(copy))
    assert says in reason
    assert "pip install" in reason


WITHOUT_LIBRARY = """
import torch
from fasttransfer import native
from fasttransfer._dropout import dropout
assert not native.available()
assert "is not built" in native.why_not()
assert native.operators()["dropout"] == "PyTorch"
x = torch.arange(1.0, 1002.0, requires_grad=True)
y = dropout(x, 2**64 - 3, 5, 0.3)
y.sum().backward()
torch.save([y.detach(), x.grad], "without.pt")
"""


def test_everything_runs_without_the_library(tmp_path: Path) -> None:
    """The package, copied without its library, gives the same bits and says why it is slow."""
    package = tmp_path / "fasttransfer"
    shutil.copytree(Path(fasttransfer.__file__).parent, package, ignore=shutil.ignore_patterns("_native_*"))
    script = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{WITHOUT_LIBRARY}"]
    done = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    without, gradient = torch.load(tmp_path / "without.pt")

    x = torch.arange(1.0, 1002.0)
    assert torch.equal(without, torch.ops.fasttransfer.dropout(x, -3, 5, 0.3))
    assert torch.equal(gradient, torch.ops.fasttransfer.dropout(torch.ones(1001), -3, 5, 0.3))
