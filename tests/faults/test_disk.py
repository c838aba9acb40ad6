"""Disks that are full, read-only or forbidden: one sentence, exit code 2, nothing half-written."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from sources import by_class, write
from studies import quiet, same_study, tiny_choices

from fasttransfer.core.errors import InputError
from fasttransfer.core.files import replace_file
from fasttransfer.pipelines import shard_writer
from fasttransfer.pipelines.prepare import prepare
from fasttransfer.pipelines.store import Kind
from fasttransfer.training import grid


def test_a_disk_that_fills_up_stops_the_study_with_a_sentence_and_it_can_go_on(
    small_disk: Path, tmp_path: Path
) -> None:
    choices = tiny_choices(tmp_path, layers=(2, 7))
    grid.run(choices, tmp_path / "undisturbed", console=quiet())
    out = small_disk / "run"
    with pytest.raises(InputError, match=r"no space left on device|disk is full|database or disk is full"):
        grid.run(choices, out, console=quiet())
    assert not list(out.rglob("*.tmp"))
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    assert grid.run(choices, out, console=quiet())
    same_study(tmp_path / "undisturbed", out)


@pytest.mark.parametrize("kind", ["raw", "jpeg"])
def test_a_disk_that_fills_up_stops_prepare_with_a_sentence_and_it_can_go_on(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    """Not with a signal: that is what a memory-mapped file on a full disk sends to its writer."""
    monkeypatch.setattr(shard_writer, "SHARD_BYTES", 100_000)
    source = write(tmp_path / "source", by_class("", ("cat", "dog"), 300))
    choices = {"size": 16, "kind": kind}
    wanted = prepare(source, cache=tmp_path / "undisturbed", **choices)  # type: ignore[arg-type]
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1 << 40))
        with pytest.raises(InputError, match="no space left on device"):
            prepare(source, cache=small_disk, **choices)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="the disk has 0 MB free"):
        prepare(source, cache=small_disk, **choices)  # type: ignore[arg-type]
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    said: list[str] = []
    folder = prepare(source, cache=small_disk, log=said.append, **choices).folder  # type: ignore[arg-type]
    assert any("are there from an interrupted run" in line for line in said)
    for file in wanted.folder.iterdir():
        assert (folder / file.name).read_bytes() == file.read_bytes()


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot write here"):
        grid.run(tiny_choices(tmp_path), tmp_path / "file" / "run", console=quiet())
    with pytest.raises(InputError, match="a file has this name"):
        grid.run(tiny_choices(tmp_path), tmp_path / "file", console=quiet())


def test_a_read_only_disk_is_told(small_disk: Path, tmp_path: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(InputError, match="read-only file system"):
        grid.run(tiny_choices(tmp_path), small_disk / "run", console=quiet())


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "thesis"
    out.mkdir()
    (out / "chapter1.tex").write_text("years of work")
    with pytest.raises(InputError, match=r"chapter1\.tex but no study"):
        grid.run(tiny_choices(tmp_path), out, console=quiet())
    assert [p.name for p in out.iterdir() if p.name != ".lock"] == ["chapter1.tex"]


def test_bad_images_leave_no_folder_behind(tmp_path: Path) -> None:
    choices = tiny_choices(tmp_path)
    (Path(choices.data) / "train" / "n01440764" / "broken.jpg").write_text("this is no image")
    with pytest.raises(InputError, match=r"broken\.jpg"):
        grid.run(choices, tmp_path / "run", console=quiet())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old")

    def refuse(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(InputError, match="cannot write here"), replace_file(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_bug_while_writing_keeps_its_own_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), replace_file(tmp_path / "x") as file:
        file.write(str(1 // 0).encode())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [errno.EDQUOT, errno.EIO, errno.EROFS], ids=errno.errorcode.get)
def test_a_file_that_cannot_be_removed_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    """On some disks removing takes room too: a finished network's checkpoint, in a worker."""
    remove = Path.unlink

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if path.parent.name == "checkpoints" and path.exists():
            raise OSError(error, os.strerror(error), str(path))
        remove(path, missing_ok=missing_ok)

    choices, out = tiny_choices(tmp_path, layers=(3,), treatments=("random",), targets=("B",)), tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", unlink)
        with pytest.raises(InputError, match=rf"checkpoints/\S+safetensors: {os.strerror(error).lower()}: see to its"):
            grid.run(choices, out, console=quiet(), checkpoint_seconds=0.0)
    assert grid.run(choices, out, console=quiet())
