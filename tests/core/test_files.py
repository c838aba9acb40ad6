"""What is said of files and folders that cannot be used."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from fasttransfer.core.errors import InputError
from fasttransfer.core.files import access_errors, disk_errors


@pytest.mark.parametrize(
    ("where", "remedy"),
    [("cache", "name another folder for the cache with FASTTRANSFER_CACHE"), ("elsewhere", "choose another folder")],
)
def test_a_full_or_forbidden_cache_names_the_variable_that_moves_it(
    where: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTTRANSFER_CACHE", str(tmp_path / "cache"))
    path = tmp_path / where / "stores"
    with pytest.raises(InputError, match=f"{path}: cannot write here .no space left.*: free space or {remedy}"):
        with disk_errors(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(InputError, match=f"{path}: permission denied: see to its permissions or {remedy}"):
        with access_errors():
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def test_other_errors_of_the_system_are_left_alone() -> None:
    with pytest.raises(BlockingIOError), access_errors(), disk_errors(Path("here")):
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
