"""Kills, Ctrl-C, full disks and two processes at once: prepare resumes, and ends with the same files."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from pathlib import Path
from typing import IO, Any

import pytest
from preparing import (
    SHARD_BYTES,
    both_kinds,
    held,
    preparing,
    quiet,
    refusal,
    same_files,
    source_of,
    visible,
    with_bad_ones,
)
from sources import jpeg, write

from fasttransfer.core.errors import InputError
from fasttransfer.pipelines import shard_writer, store_request, write_store
from fasttransfer.pipelines.layouts import ImageFile, Listing, list_images
from fasttransfer.pipelines.prepare import prepare, prepare_into
from fasttransfer.pipelines.store import Kind, shard_name
from fasttransfer.pipelines.verification import verify


@both_kinds
@pytest.mark.usefixtures("small_shards")
def test_a_disk_that_fills_up_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind) -> None:
    source = source_of(tmp_path / "source", 40)
    wanted = prepare(source, size=8, cache=tmp_path / "undisturbed", kind=kind, log=quiet)
    write_images, lines = write_store.write_images, list[str]()

    def full(file: IO[bytes], *arguments: Any, **choices: Any) -> list[int]:
        sizes = write_images(file, *arguments, **choices)
        if file.name.endswith(shard_name("train", 2, kind)):
            raise OSError(errno.ENOSPC, "No space left on device")
        return sizes

    with monkeypatch.context() as patch:
        patch.setattr(write_store, "write_images", full)
        with pytest.raises(InputError, match=r"cannot write here \(no space left on device\)"):
            prepare(source, size=8, cache=tmp_path / "cache", kind=kind, log=lines.append)
    assert "the same command resumes from them" in lines[-1]
    store = prepare(source, size=8, cache=tmp_path / "cache", kind=kind, log=lines.append)
    assert any("40 images are there from an interrupted run" in text for text in lines)
    same_files(store.folder, wanted.folder)


@both_kinds
@pytest.mark.usefixtures("small_shards")
def test_killed_anywhere_and_run_again_gives_the_same_files(tmp_path: Path, kind: Kind) -> None:
    source = with_bad_ones(tmp_path / "source")
    choices = {"size": 8, "kind": kind, "bad_images": "skip"}
    wanted = prepare(source, cache=tmp_path / "undisturbed", log=quiet, **choices)  # type: ignore[arg-type]
    assert len(wanted.train) == 116 and len(wanted.manifest["refused"]) == 8
    last = len(wanted.manifest["parts"]["train"]["shards"]) - 1
    assert last >= 3
    stores = tmp_path / "cache/stores"
    points = [("train", 0), ("train", 1), ("train", last), ("val", 0)]
    for part, number in points:
        with held(source, tmp_path / "cache", shard_name(part, number, kind), kind):
            assert len(list(stores.glob(f".*.tmp/{shard_name(part, number, kind)}"))) == 1
        left = visible(stores)
        assert len(left) == 1 and left[0].endswith(".tmp")  # nothing that looks like a store
    lines: list[str] = []
    store = prepare(source, cache=tmp_path / "cache", log=lines.append, **choices)  # type: ignore[arg-type]
    assert lines[0] == "prepare: 116 images are there from an interrupted run: checking them"
    assert f"{len(list_images(source).train):,} images were there from before" in lines[-1]
    same_files(store.folder, wanted.folder)
    verify(store)
    assert visible(stores) == [store.folder.name]


@both_kinds
@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize(
    ("damage", "whole"),
    {
        "flip": 1, "cut": 1, "longer": 1, "gone": 1, "swapped": 1, "record flip": 1, "record cut": 1, "record gone": 1,
        "records swapped": 1, "request flip": 0, "of an older version": 0,
    }.items(),
)  # fmt: skip
def test_interrupted_work_is_kept_up_to_the_first_damaged_shard(
    tmp_path: Path, kind: Kind, damage: str, whole: int
) -> None:
    source = with_bad_ones(tmp_path / "source")
    choices = {"size": 8, "kind": kind, "bad_images": "skip"}
    wanted = prepare(source, cache=tmp_path / "undisturbed", log=quiet, **choices)  # type: ignore[arg-type]
    with held(source, tmp_path / "cache", shard_name("train", 3, kind), kind):
        pass
    (left,) = (tmp_path / "cache/stores").glob(".*.tmp")
    second, third = (left / shard_name("train", number, kind) for number in (1, 2))
    assert len(list(left.glob("*.done"))) == 3
    record = Path(f"{second}.done")
    match damage:
        case "flip":
            flip(second, len(second.read_bytes()) // 2)
        case "cut":
            os.truncate(second, second.stat().st_size - 1)
        case "longer":
            second.write_bytes(second.read_bytes() + b"\0")
        case "gone":
            second.unlink()
        case "swapped":
            swap(second, third)
        case "record flip":
            flip(record, record.stat().st_size - 9)
        case "record cut":
            os.truncate(record, record.stat().st_size - 9)
        case "record gone":
            record.unlink()
        case "records swapped":
            swap(record, Path(f"{third}.done"))
        case "request flip":
            flip(left / write_store.REQUEST, 40)
        case "of an older version":
            (left / write_store.REQUEST).rename(left / "journal")
    (left / "stray.tmp").write_text("half a file")
    lines: list[str] = []
    store = prepare(source, cache=tmp_path / "cache", log=lines.append, **choices)  # type: ignore[arg-type]
    same_files(store.folder, wanted.folder)
    assert any("are there from an interrupted run" in text for text in lines) == bool(whole)
    assert lines[-1].endswith(", 20 images were there from before") == bool(whole)


def swap(one: Path, other: Path) -> None:
    data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.usefixtures("small_shards")
def test_ctrl_c_keeps_what_is_complete(tmp_path: Path) -> None:
    source = with_bad_ones(tmp_path / "source")
    with held(source, tmp_path / "cache", "train-0002.npy") as other:
        assert other.process.pid is not None
        os.kill(other.process.pid, signal.SIGINT)
        output = other.rest()
    assert "the same command resumes" in output[-2] and "KeyboardInterrupt" in output[-1]
    lines: list[str] = []
    again = prepare(source, size=8, cache=tmp_path / "cache", bad_images="skip", log=lines.append)
    assert lines[0].startswith("prepare: 37 images are there")
    wanted = prepare(source, size=8, cache=tmp_path / "undisturbed", bad_images="skip", log=quiet)
    same_files(again.folder, wanted.folder)


def test_work_of_other_versions_is_not_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = with_bad_ones(tmp_path / "source")
    with held(source, tmp_path / "cache", "train-0002.npy"):
        pass
    monkeypatch.setattr(store_request, "version", lambda name: "99")
    lines: list[str] = []
    store = prepare(source, size=8, cache=tmp_path / "cache", bad_images="skip", log=lines.append)
    assert not any("interrupted run" in text for text in lines)
    assert store.manifest["versions"]["pillow"] == "99"
    assert visible(store.folder.parent) == [store.folder.name]


def test_a_bad_image_found_before_the_kill_still_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With "fail" a shard with a bad image is never complete, so that the image is met again."""
    monkeypatch.setattr(shard_writer, "SHARD_BYTES", SHARD_BYTES["raw"])
    source = write(source_of(tmp_path / "source", 60), {"train/dog/99.jpg": b"", "val/cat/99.jpg": b""})
    stop = write_store.describe_refused
    monkeypatch.setattr(write_store, "describe_refused", lambda refused: pytest.fail("stopped", pytrace=False))
    with pytest.raises(pytest.fail.Exception):
        prepare(source, size=8, cache=tmp_path / "cache", log=quiet)
    assert len(visible(tmp_path / "cache/stores")) == 1
    monkeypatch.setattr(write_store, "describe_refused", stop)
    message = refusal(source, tmp_path / "cache")
    assert "2 images cannot be decoded: train/dog/99.jpg" in message
    assert visible(tmp_path / "cache/stores") == []


def test_an_image_that_becomes_readable_later_does_not_change_complete_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A range that is complete is not read again, even where all of its images were left out."""
    monkeypatch.setattr(shard_writer, "SHARD_BYTES", SHARD_BYTES["raw"])
    source = source_of(tmp_path / "source", 60)
    write(source, {"train/dog/999.jpg": jpeg(5)})
    read = Listing.read

    def flaky(listing: Listing, image: ImageFile) -> bytes:
        if image.path == "train/dog/999.jpg":
            raise OSError("input/output error")
        return read(listing, image)

    choices = {"size": 8, "bad_images": "skip", "log": quiet}
    with monkeypatch.context() as patch:
        patch.setattr(Listing, "read", flaky)
        wanted = prepare(source, cache=tmp_path / "undisturbed", **choices)  # type: ignore[arg-type]
        assert wanted.manifest["parts"]["train"]["shards"] == [20] * 6 + [0]
        patch.setattr(write_store._StoreWriter, "finish", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare(source, cache=tmp_path / "cache", **choices)  # type: ignore[arg-type]
    store = prepare(source, cache=tmp_path / "cache", **choices)  # type: ignore[arg-type]
    same_files(store.folder, wanted.folder)


def test_work_that_cannot_be_resumed_is_removed(tmp_path: Path) -> None:
    source, cache, stores = source_of(tmp_path / "source", 60), tmp_path / "cache", tmp_path / "cache/stores"
    with held(source, cache, "train-0001.npy"):
        other = source_of(tmp_path / "other")
        made = [prepare(other, size=8, cache=cache, log=quiet)]  # the first is at work: not touched
        assert len(visible(stores)) == 2
    (left,) = stores.glob(".*.tmp")

    def stays() -> bool:
        made.append(prepare(other, size=8 + len(made), cache=cache, log=quiet))
        return left.name in visible(stores)

    assert stays()  # it may be resumed
    shutil.copytree(left, tmp_path / "kept")
    source.rename(tmp_path / "away")
    assert not stays()  # gone with its source
    (tmp_path / "away").rename(source)
    shutil.copytree(tmp_path / "kept", left)
    os.utime(left, ns=(0, 0))
    assert not stays()  # too old
    shutil.copytree(tmp_path / "kept", left)
    (source / "train/cat/1.jpg").unlink()
    assert stays()
    made.append(prepare(source, size=8, cache=cache, bad_images="skip", log=quiet))
    assert visible(stores) == sorted(store.folder.name for store in made)  # another state of the same source


def test_two_at_once_make_it_once(tmp_path: Path) -> None:
    source, cache = source_of(tmp_path / "source", 60), tmp_path / "cache"
    with held(source, cache, "train-0002.npy") as first, preparing(source, cache) as second:
        second.wait_for("prepare: another run is preparing these images")
        first.go_on()
        lines = [first.rest(), second.rest()]
    assert "prepare: done in" in lines[0][-2]
    wanted = prepare(source, size=8, cache=tmp_path / "other", bad_images="skip", log=quiet)
    assert lines[0][-1] == f"digest {wanted.digest}" and lines[1] == lines[0][-1:]


def test_the_waiting_process_resumes_when_the_first_is_killed(tmp_path: Path) -> None:
    source, cache = source_of(tmp_path / "source", 60), tmp_path / "cache"
    with held(source, cache, "train-0002.npy") as first, preparing(source, cache) as second:
        second.wait_for("prepare: another run is preparing these images")
        first.kill()
        lines = second.rest()
    assert lines[0].startswith("prepare: 40 images are there from an interrupted run")
    wanted = prepare(source, size=8, cache=tmp_path / "other", bad_images="skip", log=quiet)
    assert lines[-1] == f"digest {wanted.digest}"


def test_prepare_into_resumes_and_leaves_the_work_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_writer, "SHARD_BYTES", SHARD_BYTES["raw"])
    source, folder = source_of(tmp_path / "source", 60), tmp_path / "store"
    write(tmp_path, {".other.tmp/work": "of another program", ".other.lock": b""})
    with monkeypatch.context() as patch:
        patch.setattr(write_store._StoreWriter, "finish", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare_into(source, folder, size=8, log=quiet)
    lines: list[str] = []
    store = prepare_into(source, folder, size=8, log=lines.append)
    assert "124 images are there from an interrupted run" in lines[0]
    same_files(folder, prepare(source, size=8, cache=tmp_path / "cache", log=quiet).folder)
    assert store.kind == "raw" and visible(tmp_path) == [".other.tmp", "cache", "source", "store"]
