"""Prepare makes stores from images, refuses bad sources, and reuses stores that exist."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tarfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from preparing import CLASSES, quiet, refusal, same_files, source_of, visible, with_bad_ones
from sources import by_class, encoded, jpeg, noise, pack, write

from fasttransfer.core import progress
from fasttransfer.core.errors import InputError
from fasttransfer.pipelines import prepare as module
from fasttransfer.pipelines import shard_writer, write_store
from fasttransfer.pipelines.decode import decode
from fasttransfer.pipelines.layouts import Listing, list_images
from fasttransfer.pipelines.prepare import find_started, prepare, prepare_into
from fasttransfer.pipelines.store import JpegStorePart, Kind, Store, shard_name
from fasttransfer.pipelines.verification import verify


def test_rows_are_the_decoded_images_in_the_listing_s_order(tmp_path: Path) -> None:
    source = source_of(tmp_path / "source")
    store = prepare(source, size=8, cache=tmp_path / "cache", log=quiet)
    listing = list_images(source)
    for part in ("train", "val"):
        images = getattr(listing, part)
        wanted = np.stack([decode(listing.read(image), 8) for image in images])
        stored = getattr(store, part)
        assert np.array_equal(stored.gather(np.arange(len(stored))), wanted)
        assert stored.labels.tolist() == [image.label for image in images]
    assert store.folder.parent == tmp_path / "cache/stores"
    assert store.manifest["layout"] == "image-folder" and store.manifest["synthetic"] is False
    assert store.manifest["parts"]["train"]["per_class"] == [12, 12]
    assert store.manifest["versions"]["pillow"]
    verify(store)


def test_a_folder_and_its_tar_give_the_same_digest(tmp_path: Path) -> None:
    source = source_of(tmp_path / "source")
    archive = pack(source, tmp_path / "source.tar", top="all")
    stores = [prepare(each, size=8, cache=tmp_path / "cache", log=quiet) for each in (source, archive)]
    assert stores[0].digest == stores[1].digest and stores[0].folder != stores[1].folder


def test_logs_what_the_store_will_take_and_the_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    lines: list[str] = []
    source = write(tmp_path / "source", by_class("", CLASSES, 20))
    prepare(source, size=8, cache=tmp_path / "cache", log=lines.append)
    assert "4 images held out" in lines[0]
    assert "36 training and 4 validation images of 2 classes at 8 x 8" in lines[1] and lines[1].endswith(": 0 MB")
    assert "16 of 40 images, " in lines[2] and "images per second" in lines[2] and lines[2].endswith("left")
    assert lines[-1].startswith("prepare: done in")


def test_logs_progress_at_most_every_few_seconds(tmp_path: Path) -> None:
    lines: list[str] = []
    prepare(source_of(tmp_path / "source"), size=8, cache=tmp_path / "cache", log=lines.append)
    assert len(lines) <= 2 + 1  # the size and the end; one more on a machine this slow


def test_reused_until_something_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, cache = source_of(tmp_path / "source"), tmp_path / "cache"
    made = []
    fill = module.write_store
    monkeypatch.setattr(module, "write_store", lambda *arguments: (made.append(arguments[0]), fill(*arguments)))

    def again(**choices: object) -> int:
        prepare(source, **({"size": 8, "cache": cache, "log": quiet} | choices))  # type: ignore[arg-type]
        return len(made)

    assert [again(), again()] == [1, 1]
    assert [again(size=9), again(size=9), again(bad_images="skip")] == [2, 2, 3]
    assert [again(kind="jpeg"), again(fit="crop"), again(kind="jpeg"), again(fit="crop")] == [4, 5, 5, 5]
    os.utime(source / "train/cat/3.jpg", ns=(0, 0))
    assert [again(), again()] == [6, 6]
    write(source, {"train/cat/new.jpg": jpeg(99)})
    assert [again(), again()] == [7, 7]
    (source / "train/cat/new.jpg").unlink()
    assert again() == 7  # as it was before: that store is still there
    monkeypatch.chdir(tmp_path)
    prepare(Path("source"), size=8, cache=cache, log=quiet)
    assert len(made) == 7


def test_a_store_is_used_from_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, cache = source_of(tmp_path / "source"), tmp_path / "cache"
    digest = prepare(source, size=8, cache=cache, log=quiet).digest
    monkeypatch.setattr(os, "open", lambda *arguments: pytest.fail("took a lock"))
    assert prepare(source, size=8, cache=cache, log=quiet).digest == digest


def test_a_damaged_store_is_made_again(tmp_path: Path) -> None:
    source, cache = source_of(tmp_path / "source"), tmp_path / "cache"
    store = prepare(source, size=8, cache=cache, log=quiet)
    write(store.folder, {"train-0000.npy": b"short"})
    lines: list[str] = []
    again = prepare(source, size=8, cache=cache, log=lines.append)
    assert again.digest == store.digest and again.folder == store.folder
    assert "the store is damaged" in lines[0]
    verify(again)


def test_a_store_that_cannot_be_read_just_now_is_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, cache = source_of(tmp_path / "source"), tmp_path / "cache"
    store = prepare(source, size=8, cache=cache, log=quiet)
    shard, load = store.folder / "train-0000.npy", np.load
    before = shard.stat()

    def too_many(file: Path, **choices: object) -> object:
        if Path(file) == shard:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(file))
        return load(file, **choices)  # type: ignore[call-overload]

    monkeypatch.setattr(np, "load", too_many)
    with pytest.raises(InputError, match=r"train-0000\.npy cannot be read \(too many open files\)"):
        prepare(source, size=8, cache=cache, log=quiet)
    assert shard.stat() == before


def test_a_name_that_is_too_long_is_an_input_error(tmp_path: Path) -> None:
    for length in (252, 300):
        with pytest.raises(InputError, match="name too long"):
            prepare_into(source_of(tmp_path / "source"), tmp_path / ("x" * length), size=8, log=quiet)


def test_find_started_computes_the_keys_of_prepare(tmp_path: Path) -> None:
    source, cache = list_images(source_of(tmp_path / "source")), tmp_path / "cache"
    assert find_started(source, size=8, cache=cache) == ()
    prepare(source, size=8, cache=cache, kind="jpeg", log=quiet)
    assert find_started(source, size=8, cache=cache) == ("jpeg",)
    prepare(source, size=8, cache=cache, log=quiet)
    assert find_started(source, size=8, cache=cache) == ("raw", "jpeg")
    assert find_started(source, size=8, cache=cache, bad_images="skip") == ()


BAD = {
    "train/cat/cut.jpg": jpeg(1)[:-20],
    "train/cat/empty.png": b"",
    "train/dog/page.jpg": b"<html>404</html>",
    "val/dog/float.tif": encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"),
}


def test_bad_images_fail_together(tmp_path: Path) -> None:
    source = write(source_of(tmp_path / "source"), BAD)
    message = refusal(source, tmp_path / "cache")
    assert message.startswith(f"{source}: 4 images cannot be decoded: train/cat/cut.jpg (")
    assert "truncated" in message and "train/cat/empty.png (the file is empty)" in message
    assert "train/dog/page.jpg (not an image" in message and "val/dog/float.tif (" in message
    assert "--bad-images skip" in message
    assert visible(tmp_path / "cache/stores") == []


def test_only_the_first_bad_images_are_named(tmp_path: Path) -> None:
    source = write(source_of(tmp_path / "source"), {f"train/cat/x{i}.jpg": b"" for i in range(50)})
    message = refusal(source, tmp_path / "cache")
    assert "50 images cannot be decoded" in message and "and 45 more" in message
    assert message.count("the file is empty") == 5
    (bad_list,) = (tmp_path / "cache/stores").glob("*.bad-images.txt")
    assert f"(all are listed in {bad_list})" in message
    assert sorted(bad_list.read_text().splitlines()) == sorted(
        f"train/cat/x{i}.jpg\tthe file is empty" for i in range(50)
    )


def test_a_list_of_bad_images_goes_when_they_are_left_out(tmp_path: Path) -> None:
    source = write(source_of(tmp_path / "source"), {f"train/cat/x{i}.jpg": b"" for i in range(6)})
    into = partial(prepare_into, source, tmp_path / "store", size=8, log=quiet)
    with pytest.raises(InputError, match=r"\(all are listed in .*/store.bad-images.txt\)"):
        into()
    assert into(bad_images="skip").folder == tmp_path / "store"
    assert not (tmp_path / "store.bad-images.txt").exists()


@pytest.mark.parametrize("rows", [1, 5, 8, 1000])
def test_bad_images_skipped_are_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(shard_writer, "SHARD_BYTES", rows * 8 * 8 * 3)
    clean = prepare(source_of(tmp_path / "source"), size=8, cache=tmp_path / "cache", log=quiet)
    source, lines = write(tmp_path / "source", BAD), list[str]()
    listing = list_images(source)
    store = prepare(source, size=8, cache=tmp_path / "cache", bad_images="skip", log=lines.append)

    def files_of(part: str) -> list[str]:
        """A shard for each range of the list, even where none of its images can be decoded."""
        images = [image.path not in BAD for image in getattr(listing, part)]
        counts = [sum(images[start : start + rows]) for start in range(0, len(images), rows)]
        assert store.manifest["parts"][part]["shards"] == counts
        return [f"{part}-labels.npy", *(shard_name(part, number) for number in range(len(counts)))]

    assert store.digest == clean.digest
    assert {each["path"]: bool(each["reason"]) for each in store.manifest["refused"]} == dict.fromkeys(BAD, True)
    assert any("4 images cannot be decoded" in text for text in lines)
    assert visible(store.folder) == sorted(["manifest.json", *(f for part in ("train", "val") for f in files_of(part))])
    for part in ("train", "val"):
        shown = getattr(store, part).gather(np.arange(len(getattr(store, part))))
        assert np.array_equal(shown, getattr(clean, part).gather(np.arange(len(shown))))
    verify(store)


def test_skipping_must_not_empty_a_class(tmp_path: Path) -> None:
    source = write(source_of(tmp_path / "source"), {"train/eel/0.jpg": b"", "val/eel/0.jpg": jpeg()})
    message = refusal(source, tmp_path / "cache", bad_images="skip")
    assert "class eel has no training image left" in message and "train/eel/0.jpg (the file is empty)" in message
    assert visible(tmp_path / "cache/stores") == []


def test_a_file_that_cannot_be_read_is_a_bad_image(tmp_path: Path) -> None:
    source = source_of(tmp_path / "source")
    (source / "train/cat/lost.jpg").symlink_to("nowhere.jpg")
    assert "train/cat/lost.jpg (cannot be read: no such file or directory)" in refusal(source, tmp_path / "cache")


def test_odd_notes_in_good_images_give_no_warning(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    exif = b"Exif\0\0MM\0*\0\0\0\x08\xff\xffrubbish"
    source = write(source_of(tmp_path / "source"), {"train/cat/odd.jpg": encoded(noise(1), exif=exif)})
    assert len(prepare(source, size=8, cache=tmp_path / "cache", log=quiet).train) == 25
    assert not recwarn.list


@pytest.mark.parametrize("size", [0, -1, 5000])
def test_sizes_out_of_range_are_refused(tmp_path: Path, size: int) -> None:
    with pytest.raises(InputError, match="1 to 4096"):
        prepare(tmp_path, size=size, cache=tmp_path, log=quiet)


def test_unknown_word_for_bad_images(tmp_path: Path) -> None:
    assert "say fail or skip" in refusal(tmp_path, tmp_path, bad_images="ignore")


def test_a_disk_that_is_too_small_is_an_error_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_of(tmp_path / "source")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    assert "the store takes 0 MB, the disk has 0 MB free" in refusal(source, tmp_path / "cache")
    assert visible(tmp_path / "cache/stores") == []


def test_a_cache_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("in the way")
    assert str(tmp_path / "cache") in refusal(source_of(tmp_path / "source"), tmp_path / "cache")


def test_an_error_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_of(tmp_path / "source")

    def broken(listing: Listing, image: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(write_store, "_read", broken)
        with pytest.raises(ZeroDivisionError):
            prepare(source, size=8, cache=tmp_path / "cache", log=quiet)
    assert visible(tmp_path / "cache/stores") == []


@pytest.mark.parametrize("how", ["grows", "is touched"])
def test_an_image_that_changes_meanwhile_is_an_error(tmp_path: Path, how: str) -> None:
    source = source_of(tmp_path / "source")
    listing, changed = list_images(source), source / "train/dog/3.jpg"
    if how == "grows":
        changed.write_bytes(changed.read_bytes() + b"more")
    else:
        os.utime(changed, ns=(0, 0))
    with pytest.raises(InputError, match=r"train/dog/3\.jpg changed while it was prepared"):
        prepare(listing, size=8, cache=tmp_path / "cache", log=quiet)
    assert visible(tmp_path / "cache/stores") == []


def test_an_archive_that_changes_meanwhile_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = pack(source_of(tmp_path / "source"), tmp_path / "source.tar")
    read = write_store._read

    def touch(listing: Listing, image: object) -> object:
        os.utime(archive, ns=(0, 0))
        return read(listing, image)  # type: ignore[arg-type]

    monkeypatch.setattr(write_store, "_read", touch)
    assert "changed while it was prepared" in refusal(archive, tmp_path / "cache")


@pytest.mark.parametrize("kind", ["jpeg"])
@pytest.mark.usefixtures("small_shards")
def test_a_jpeg_store_is_a_webdataset(tmp_path: Path, kind: Kind) -> None:
    source = with_bad_ones(tmp_path / "source")
    choices = {"size": 8, "bad_images": "skip", "log": quiet}
    raw = prepare(source, cache=tmp_path / "cache", **choices)  # type: ignore[arg-type]
    store = prepare(source, cache=tmp_path / "cache", kind=kind, **choices)  # type: ignore[arg-type]
    assert store.kind == "jpeg" and store.digest != raw.digest and store.manifest["quality"] == 95
    for name in ("train", "val"):
        part, pixels = getattr(store, name), getattr(raw, name)
        assert isinstance(part, JpegStorePart) and np.array_equal(part.labels, pixels.labels)
        row = 0
        for file in sorted(store.folder.glob(f"{name}-*.tar")):
            with tarfile.open(file, "r:") as archive:
                members = archive.getmembers()
                for image, label in zip(members[::2], members[1::2], strict=True):
                    assert [image.name, label.name] == [f"{row:08d}.jpg", f"{row:08d}.cls"]
                    assert image.isreg() and (image.mtime, image.uid, image.uname) == (0, 0, "")
                    data, text = (archive.extractfile(each).read() for each in (image, label))  # type: ignore[union-attr]
                    assert data == part.read(row) and int(text) == part.labels[row]
                    assert data == encoded(Image.fromarray(pixels.gather([row])[0]), quality=95)
                    row += 1
            assert file.stat().st_size % 10240 == 0
        assert row == len(part)
    assert len(store.manifest["parts"]["train"]["shards"]) > 3


def test_prepare_estimates_the_size_of_a_jpeg_store(shared: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    store = prepare(shared / "data/ilsvrc12-samples.tar", size=256, cache=tmp_path, kind="jpeg", log=lines.append)
    (line,) = (text for text in lines if "256 x 256" in text)
    about = float(line.rpartition(": about ")[2].removesuffix(" MB"))
    taken = sum(path.stat().st_size for path in store.folder.iterdir()) / 1e6
    assert 0.8 < taken / about < 1.2
    verify(store)


def test_fit_crop_keeps_the_aspect(tmp_path: Path) -> None:
    wide = Image.new("RGB", (24, 8))
    wide.paste((255, 0, 0), (8, 0, 16, 8))
    source = write(tmp_path / "source", dict.fromkeys(("a/1.png", "b/1.png"), encoded(wide, "PNG")))
    store = prepare(source, size=8, cache=tmp_path / "cache", fit="crop", log=quiet)
    assert np.all(store.train.gather(np.arange(2)) == [255, 0, 0]) and store.manifest["fit"] == "crop"


def test_prepare_into_a_folder(tmp_path: Path) -> None:
    source, folder, lines = source_of(tmp_path / "source"), tmp_path / "deep/store", list[str]()
    store = prepare_into(source, folder, size=8, log=lines.append)
    assert store.folder == folder
    same_files(folder, prepare(source, size=8, cache=tmp_path / "cache", log=quiet).folder)
    lines.clear()
    assert prepare_into(source, folder, size=8, log=lines.append).digest == store.digest
    assert lines == [f"prepare: {folder} is this store already: nothing to do"]


def test_prepare_into_keeps_other_files(tmp_path: Path) -> None:
    source, folder = source_of(tmp_path / "source"), tmp_path / "store"

    def refused(**choices: object) -> str:
        with pytest.raises(InputError) as caught:
            prepare_into(source, folder, **({"size": 8, "log": quiet} | choices))  # type: ignore[arg-type]
        return str(caught.value)

    folder.write_text("mine")
    assert "a file has this name" in refused()
    folder.unlink()
    write(folder, {"thesis.tex": "years of work"})
    assert "is not empty and holds no store" in refused()
    (folder / "thesis.tex").unlink()
    prepare_into(source, folder, size=8, log=quiet)  # an empty folder will do
    assert "another store is here (raw, 8 x 8, of" in refused(size=9)
    write(source, {"train/cat/new.jpg": jpeg(9)})
    assert "or the images changed since" in refused()
    (folder / "train-0000.npy").write_bytes(b"")
    assert "the store is damaged" in refused()
    folder = source / "store"
    assert "lies inside the images" in refused()


def test_files_put_into_the_folder_meanwhile_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, folder = source_of(tmp_path / "source"), tmp_path / "store"
    folder.mkdir()
    monkeypatch.setattr(module, "write_store", lambda *_: write(folder, {"thesis.tex": "years of work"}))
    with pytest.raises(InputError, match="is not empty"):
        prepare_into(source, folder, size=8, log=quiet)
    assert visible(folder) == ["thesis.tex"]


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"kind": "zip"}, "say raw or jpeg"),
        ({"fit": "pad"}, "say stretch or crop"),
        ({"device": "tpu"}, "device 'tpu': say cpu or cuda"),
    ],
)
def test_unknown_words(tmp_path: Path, choices: dict[str, str], words: str) -> None:
    assert words in refusal(tmp_path, tmp_path, **choices)


def test_the_tiny_imagenet_subset(shared: Path, tmp_path: Path) -> None:
    store = prepare(shared / "data/tiny-imagenet-200-subset.tar", size=16, cache=tmp_path, log=quiet)
    assert (len(store.train), len(store.val), len(store.classes)) == (24000, 5000, 200)
    assert np.all(np.bincount(store.val.labels) == 25)
    assert 90 < store.train.gather(np.arange(0, 24000, 100)).mean() < 140
    store.require_both_parts(store.classes)


def test_the_ilsvrc12_samples_cannot_make_a_study(shared: Path, tmp_path: Path) -> None:
    store = prepare(shared / "data/ilsvrc12-samples.tar", size=256, cache=tmp_path, log=quiet)
    assert (len(store.train), len(store.val)) == (400, 0)
    assert len(store.val.gather(np.arange(0))) == 0
    with pytest.raises(InputError, match="no validation image of n01440764"):
        store.require_both_parts(store.classes)


def test_the_manifest_is_json_that_others_read(tmp_path: Path) -> None:
    store = prepare(source_of(tmp_path / "source"), size=8, cache=tmp_path / "cache", log=quiet)
    manifest = json.loads((store.folder / "manifest.json").read_text())
    assert manifest["classes"] == ["cat", "dog"] and manifest["parts"]["train"]["shards"] == [24]
    assert Store.open(store.folder).manifest == manifest
