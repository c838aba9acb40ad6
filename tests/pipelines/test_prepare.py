from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from sources import by_class, encoded, jpeg, noise, pack, write

from fasttransfer.errors import InputError
from fasttransfer.pipelines import prepare as module
from fasttransfer.pipelines import synthetic, writer
from fasttransfer.pipelines.layouts import find_pictures
from fasttransfer.pipelines.prepare import builtin, prepare
from fasttransfer.pipelines.store import Store

CLASSES = ("cat", "dog")

# A process that prepares, slowly enough to be met in the middle; it writes a line when it is done. Where it is told the
# name of a shard, it says so and stops for good once the first picture is in it.
SLOW = """
import sys, time
from pathlib import Path
from fasttransfer.pipelines import prepare as module, writer
source, cache, hold = sys.argv[1:]
writer.SHARD_BYTES = 20 * 8 * 8 * 3
decode, add = module.decode, writer.PartWriter.add
say = lambda text: print(text, flush=True)
def slow(data, size):
    time.sleep(0.004)
    return decode(data, size)
def add_and_hold(self, pixels, label):
    add(self, pixels, label)
    if self._filled and self._path().name == hold:
        say("holding")
        time.sleep(600)
module.decode, writer.PartWriter.add = slow, add_and_hold
store = module.prepare(Path(source), size=8, cache=Path(cache), say=say)
print("digest", store.digest, flush=True)
"""


def quiet(text: str) -> None:
    pass


def source_of(folder: Path, count: int = 12) -> Path:
    return write(folder, by_class("train/", CLASSES, count) | by_class("val/", CLASSES, 2))


def refusal(source: Path, cache: Path, **choices: object) -> str:
    with pytest.raises(InputError) as caught:
        prepare(source, size=8, cache=cache, say=quiet, **choices)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    return message


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def start(source: Path, cache: Path, hold: str = "") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SLOW, str(source), str(cache), hold]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@contextmanager
def held(source: Path, cache: Path, shard: str) -> Iterator[None]:
    """Within, another process has stopped in the middle of `shard`; afterwards it has been killed."""
    with start(source, cache, shard) as process:
        try:
            assert process.stdout is not None
            assert "holding\n" in iter(process.stdout.readline, "")
            yield
        finally:
            process.kill()


def test_rows_are_the_decoded_pictures_in_the_listing_s_order(tmp_path: Path) -> None:
    source = source_of(tmp_path / "source")
    store = prepare(source, size=8, cache=tmp_path / "cache", say=quiet)
    listing = find_pictures(source)
    for part in ("train", "val"):
        pictures = getattr(listing, part)
        wanted = np.stack([module.decode(listing.read(picture), 8) for picture in pictures])
        stored = getattr(store, part)
        assert np.array_equal(stored.gather(np.arange(len(stored))), wanted)
        assert stored.labels.tolist() == [picture.label for picture in pictures]
    assert store.folder.parent == tmp_path / "cache/stores"
    assert store.manifest["layout"] == "image-folder" and store.manifest["synthetic"] is False
    assert store.manifest["parts"]["train"]["per_class"] == [12, 12]
    assert store.manifest["versions"]["pillow"]
    store.verify()


def test_a_folder_and_its_tar_give_the_same_digest(tmp_path: Path) -> None:
    source = source_of(tmp_path / "source")
    archive = pack(source, tmp_path / "source.tar", top="all")
    stores = [prepare(each, size=8, cache=tmp_path / "cache", say=quiet) for each in (source, archive)]
    assert stores[0].digest == stores[1].digest and stores[0].folder != stores[1].folder


def test_says_what_it_will_take_and_how_it_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SAY_EVERY", 0.0)
    said: list[str] = []
    source = write(tmp_path / "source", by_class("", CLASSES, 20))
    prepare(source, size=8, cache=tmp_path / "cache", say=said.append)
    assert "4 pictures held out" in said[0]
    assert "36 training and 4 validation pictures of 2 classes at 8 x 8" in said[1] and "0.0 MB" in said[1]
    assert "10 of 40 pictures, " in said[11] and "a second" in said[11] and said[11].endswith("left")
    assert said[-1].startswith("prepare: done in")


def test_progress_is_not_said_more_than_every_few_seconds(tmp_path: Path) -> None:
    said: list[str] = []
    prepare(source_of(tmp_path / "source"), size=8, cache=tmp_path / "cache", say=said.append)
    assert len(said) <= 2 + 1  # what it takes and that it is done; one more on a machine this slow


def test_reused_until_something_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, cache = source_of(tmp_path / "source"), tmp_path / "cache"
    made = []
    fill = module._fill
    monkeypatch.setattr(module, "_fill", lambda *arguments: (made.append(arguments[0]), fill(*arguments)))

    def again(**choices: object) -> int:
        prepare(source, **({"size": 8, "cache": cache, "say": quiet} | choices))  # type: ignore[arg-type]
        return len(made)

    assert [again(), again()] == [1, 1]
    assert [again(size=9), again(size=9), again(bad_pictures="skip")] == [2, 2, 3]
    os.utime(source / "train/cat/3.jpg", ns=(0, 0))
    assert [again(), again()] == [4, 4]
    write(source, {"train/cat/new.jpg": jpeg(99)})
    assert [again(), again()] == [5, 5]
    (source / "train/cat/new.jpg").unlink()
    assert again() == 5  # as it was before: that store is still there
    monkeypatch.chdir(tmp_path)
    prepare(Path("source"), size=8, cache=cache, say=quiet)
    assert len(made) == 5


def test_a_store_is_used_from_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, cache = source_of(tmp_path / "source"), tmp_path / "cache"
    digest = prepare(source, size=8, cache=cache, say=quiet).digest
    monkeypatch.setattr(os, "open", lambda *arguments: pytest.fail("took a lock"))
    assert prepare(source, size=8, cache=cache, say=quiet).digest == digest


def test_a_damaged_store_is_made_again(tmp_path: Path) -> None:
    source, cache = source_of(tmp_path / "source"), tmp_path / "cache"
    store = prepare(source, size=8, cache=cache, say=quiet)
    write(store.folder, {"train-0000.npy": b"short"})
    said: list[str] = []
    again = prepare(source, size=8, cache=cache, say=said.append)
    assert again.digest == store.digest and again.folder == store.folder
    assert "the store is damaged" in said[0]
    again.verify()


BAD = {
    "train/cat/cut.jpg": jpeg(1)[:-20],
    "train/cat/empty.png": b"",
    "train/dog/page.jpg": b"<html>404</html>",
    "val/dog/float.tif": encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"),
}


def test_bad_pictures_fail_together(tmp_path: Path) -> None:
    source = write(source_of(tmp_path / "source"), BAD)
    message = refusal(source, tmp_path / "cache")
    assert message.startswith(f"{source}: 4 pictures cannot be decoded: train/cat/cut.jpg (")
    assert "truncated" in message and "train/cat/empty.png (the file is empty)" in message
    assert "train/dog/page.jpg (not a picture" in message and "val/dog/float.tif (" in message
    assert "--bad-pictures skip" in message
    assert visible(tmp_path / "cache/stores") == []


def test_only_the_first_bad_pictures_are_named(tmp_path: Path) -> None:
    source = write(source_of(tmp_path / "source"), {f"train/cat/x{i}.jpg": b"" for i in range(50)})
    message = refusal(source, tmp_path / "cache")
    assert "50 pictures cannot be decoded" in message and "and 45 more" in message
    assert message.count("the file is empty") == 5


@pytest.mark.parametrize("rows", [1, 5, 8, 1000])
def test_bad_pictures_skipped_are_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(writer, "SHARD_BYTES", rows * 8 * 8 * 3)
    clean = prepare(source_of(tmp_path / "source"), size=8, cache=tmp_path / "cache", say=quiet)
    source, said = write(tmp_path / "source", BAD), list[str]()
    store = prepare(source, size=8, cache=tmp_path / "cache", bad_pictures="skip", say=said.append)
    assert store.digest == clean.digest
    assert {each["path"]: bool(each["reason"]) for each in store.manifest["refused"]} == dict.fromkeys(BAD, True)
    assert any("4 pictures cannot be decoded" in text for text in said)
    assert visible(store.folder) == visible(clean.folder)
    store.verify()


def test_skipping_must_not_empty_a_class(tmp_path: Path) -> None:
    source = write(source_of(tmp_path / "source"), {"train/eel/0.jpg": b"", "val/eel/0.jpg": jpeg()})
    message = refusal(source, tmp_path / "cache", bad_pictures="skip")
    assert "class eel has no training picture left" in message and "train/eel/0.jpg (the file is empty)" in message
    assert visible(tmp_path / "cache/stores") == []


def test_a_file_that_cannot_be_read_is_a_bad_picture(tmp_path: Path) -> None:
    source = source_of(tmp_path / "source")
    (source / "train/cat/lost.jpg").symlink_to("nowhere.jpg")
    assert "train/cat/lost.jpg (cannot be read: no such file or directory)" in refusal(source, tmp_path / "cache")


def test_odd_notes_in_good_pictures_warn_nobody(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    exif = b"Exif\0\0MM\0*\0\0\0\x08\xff\xffrubbish"
    source = write(source_of(tmp_path / "source"), {"train/cat/odd.jpg": encoded(noise(1), exif=exif)})
    assert len(prepare(source, size=8, cache=tmp_path / "cache", say=quiet).train) == 25
    assert not recwarn.list


@pytest.mark.parametrize("size", [0, -1, 5000])
def test_sizes_that_make_no_sense(tmp_path: Path, size: int) -> None:
    with pytest.raises(InputError, match="1 to 4096"):
        prepare(tmp_path, size=size, cache=tmp_path, say=quiet)


def test_unknown_word_for_bad_pictures(tmp_path: Path) -> None:
    assert "say fail or skip" in refusal(tmp_path, tmp_path, bad_pictures="ignore")


def test_a_disk_that_is_too_small_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_of(tmp_path / "source")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    assert "the store takes 0.0 MB, the disk has 0.0 MB free" in refusal(source, tmp_path / "cache")
    assert visible(tmp_path / "cache/stores") == []


def test_a_disk_that_fills_up_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_of(tmp_path / "source")
    monkeypatch.setattr(writer, "SHARD_BYTES", 5 * 8 * 8 * 3)
    reserve, calls = os.posix_fallocate, []

    def full(*arguments: int) -> None:
        calls.append(arguments)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        reserve(*arguments)

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert "cannot write here (no space left on device)" in refusal(source, tmp_path / "cache")
    assert visible(tmp_path / "cache/stores") == []
    assert len(prepare(source, size=8, cache=tmp_path / "cache", say=quiet).train) == 24


def test_a_real_full_disk_is_an_error_and_not_a_signal(tmp_path: Path) -> None:
    """A memory-mapped file on a full disk kills its writer unless the room was reserved before."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    source = write(tmp_path / "source", by_class("", CLASSES, 300))
    program = (
        "import shutil, sys\nfrom pathlib import Path\nfrom types import SimpleNamespace\n"
        "from fasttransfer.errors import InputError\nfrom fasttransfer.pipelines.prepare import prepare\n"
        "shutil.disk_usage = lambda path: SimpleNamespace(free=1 << 40)\n"
        "try:\n    prepare(Path(sys.argv[1]), size=16, cache=Path(sys.argv[2]))\n"
        "except InputError as error:\n    sys.exit(str(error))\n"
    )
    script = f'{" ".join(mount)} || exit 99; exec "$@"'
    command = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        script,
        "sh",
        sys.executable,
        "-c",
        program,
        str(source),
        str(disk),
    ]
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare to mount a small disk")
    ran = subprocess.run(command, capture_output=True, text=True)
    if ran.returncode == 99 or "unshare" in ran.stderr:
        pytest.skip("needs the right to mount a small disk")
    assert ran.returncode == 1, ran
    assert "cannot write here (no space left on device)" in ran.stderr


def test_a_cache_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("in the way")
    assert str(tmp_path / "cache") in refusal(source_of(tmp_path / "source"), tmp_path / "cache")


def test_an_error_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_of(tmp_path / "source")

    def broken(data: bytes, size: int) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(module, "decode", broken)
        with pytest.raises(ZeroDivisionError):
            prepare(source, size=8, cache=tmp_path / "cache", say=quiet)
    assert visible(tmp_path / "cache/stores") == []


def test_killed_anywhere_and_run_again_gives_the_same_store(tmp_path: Path) -> None:
    source = source_of(tmp_path / "source", 60)
    wanted = prepare(source, size=8, cache=tmp_path / "undisturbed", say=quiet)
    stores = tmp_path / "cache/stores"
    for shard in ("train-0000.npy", "train-0003.npy", "val-0000.npy"):
        with held(source, tmp_path / "cache", shard):
            assert [path.name for path in stores.glob(f".*.tmp/{shard}")] == [shard]
        left = visible(stores)
        assert len(left) == 1 and left[0].endswith(".tmp")  # nothing that looks like a store
    store = prepare(source, size=8, cache=tmp_path / "cache", say=quiet)
    assert store.digest == wanted.digest
    store.verify()
    assert visible(stores) == [store.folder.name]


def test_what_a_killed_run_left_goes_even_if_its_source_is_gone(tmp_path: Path) -> None:
    source, stores = source_of(tmp_path / "source", 60), tmp_path / "cache/stores"
    with held(source, tmp_path / "cache", "train-0001.npy"):
        other = source_of(tmp_path / "other")
        beside = prepare(other, size=8, cache=tmp_path / "cache", say=quiet)  # the first is at work: not touched
        assert len(visible(stores)) == 2
    shutil.rmtree(source)
    last = prepare(other, size=9, cache=tmp_path / "cache", say=quiet)
    assert visible(stores) == sorted([beside.folder.name, last.folder.name])


def test_two_at_once_make_it_once(tmp_path: Path) -> None:
    source = source_of(tmp_path / "source", 60)
    both = [start(source, tmp_path / "cache") for _ in range(2)]
    said = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum("done in" in text for text in said) == 1
    assert sum("another run is preparing these pictures" in text for text in said) == 1
    digests = {line.split()[1] for text in said for line in text.splitlines() if line.startswith("digest")}
    assert digests == {prepare(source, size=8, cache=tmp_path / "other", say=quiet).digest}


def test_the_tiny_imagenet_subset(shared: Path, tmp_path: Path) -> None:
    store = prepare(shared / "data/tiny-imagenet-200-subset.tar", size=16, cache=tmp_path, say=quiet)
    assert (len(store.train), len(store.val), len(store.classes)) == (24000, 5000, 200)
    assert np.all(np.bincount(store.val.labels) == 25)
    assert 90 < store.train.gather(np.arange(0, 24000, 100)).mean() < 140
    store.need_both_parts(store.classes)


def test_the_ilsvrc12_samples_cannot_make_a_study(shared: Path, tmp_path: Path) -> None:
    store = prepare(shared / "data/ilsvrc12-samples.tar", size=256, cache=tmp_path, say=quiet)
    assert (len(store.train), len(store.val)) == (400, 0)
    assert len(store.val.gather(np.arange(0))) == 0
    with pytest.raises(InputError, match="no validation picture of n01440764"):
        store.need_both_parts(store.classes)


def test_builtin_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = builtin(size=32, cache=tmp_path, train=2, val=1, say=quiet)
    assert store.classes == tuple(sorted(synthetic.SIDES)) and store.size == 32
    assert np.all(np.bincount(store.train.labels) == 2) and np.all(np.bincount(store.val.labels) == 1)
    assert store.manifest["synthetic"] is True and store.manifest["held_out"] is False
    rendered = visible(tmp_path / "builtin")
    assert len(rendered) == 1

    def fail(*arguments: object, **choices: object) -> None:
        pytest.fail("rendered again")

    with monkeypatch.context() as patch:
        patch.setattr(synthetic, "render", fail)
        assert builtin(size=32, cache=tmp_path, train=2, val=1, say=quiet).digest == store.digest
    monkeypatch.setattr(synthetic, "fingerprint", lambda: "another renderer")
    builtin(size=32, cache=tmp_path, train=2, val=1, say=quiet)
    assert len(visible(tmp_path / "builtin")) == 2


def test_builtin_pictures_that_somebody_thinned_out_are_drawn_again(tmp_path: Path) -> None:
    store = builtin(size=32, cache=tmp_path, train=2, val=1, say=quiet)
    shutil.rmtree(next((tmp_path / "builtin").glob("*/train/*")))
    assert builtin(size=32, cache=tmp_path, train=2, val=1, say=quiet).digest == store.digest


def test_builtin_needs_both_parts(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least one of each"):
        builtin(size=32, cache=tmp_path, train=2, val=0, say=quiet)


def test_the_manifest_is_json_that_others_read(tmp_path: Path) -> None:
    store = prepare(source_of(tmp_path / "source"), size=8, cache=tmp_path / "cache", say=quiet)
    manifest = json.loads((store.folder / "manifest.json").read_text())
    assert manifest["classes"] == ["cat", "dog"] and manifest["parts"]["train"]["shards"] == [24]
    assert Store.open(store.folder).manifest == manifest
