"""The feature cache under damage, kill -9, full disks and many processes: what is not whole is never read."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from entries import INFO, KEY, features, found, images, key, make, same
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from waiting import PATIENCE

from fasttransfer.core.errors import InputError
from fasttransfer.core.tensor_files import CorruptFileError
from fasttransfer.features import cache
from fasttransfer.features import cache_entry as on_disk
from fasttransfer.features.cache_entry import EntryInfo, OtherVersionError, RemovedError, UnreadableEntryError
from fasttransfer.features.cache_key import FORMAT, CacheKey

pytest.importorskip("fasttransfer.features._shards")

SMALL = 300  # bytes, so that entries have several shards


@pytest.fixture
def whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Tensor]:
    """The folder of a cache with one entry of several shards, and the records of that."""
    monkeypatch.setattr(cache, "SHARD_BYTES", SMALL)
    root = tmp_path / "cache"
    x = make(root)
    assert len(found(root).shards) > 1
    return root, x


def fate(root: Path, x: Tensor) -> str:
    """What becomes of the one entry of a cache when it is read; the records that are read are the right ones."""
    said: list[str] = []
    entry = cache.find_entry(root, KEY, said.append)
    if entry is not None:
        try:
            entry.verify(said.append)
        except CorruptFileError:
            pass
        else:
            with entry.open() as reader:
                assert same(reader.read(range(len(x))), x)
            assert not said
            return "read"
    assert len(said) == 1 and "\n" not in said[0] and str(root) in said[0]
    assert cache.find_entry(root, KEY, said.append) is None and len(said) == 1, "it is out of the way"
    assert [folder.name for folder in cache.list_damaged(root)] == [f"{KEY.digest()}.damaged"]
    return said[0]


def restored(root: Path, copy: Path) -> Path:
    """The entry's folder, as it was when `copy` was taken."""
    folder = root / KEY.digest()
    shutil.rmtree(root)
    shutil.copytree(copy, folder)
    return folder


# Damage


def test_every_flipped_bit_of_what_an_entry_says_of_itself(whole: tuple[Path, Tensor], tmp_path: Path) -> None:
    root, x = whole
    folder = root / KEY.digest()
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    text = (folder / "entry.json").read_bytes()
    damaged = [text[:at] + bytes([text[at] ^ 1 << at % 8]) + text[at + 1 :] for at in range(len(text))]
    damaged += [text[:at] for at in range(0, len(text), 16)]
    for i, content in enumerate(damaged):
        (folder / "entry.json").write_bytes(content)
        with pytest.raises(CorruptFileError, match=re.escape(f"{folder / 'entry.json'}: ")):
            on_disk.read_entry(folder)
        if i % 100 == 0:
            assert fate(root, x) != "read"
            restored(root, copy)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shard=st.integers(0, 1), place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), cut=st.booleans())
def test_any_flipped_bit_and_any_shorter_shard(
    whole: tuple[Path, Tensor], shard: int, place: float, bit: int, cut: bool
) -> None:
    root, x = whole
    copy = root.parent / "copy"
    if not copy.exists():
        shutil.copytree(root / KEY.digest(), copy)
    path = restored(root, copy) / f"0000{shard}.shard"
    content = bytearray(path.read_bytes())
    at = int(place * len(content))
    if cut:
        path.write_bytes(content[:at])
        assert f"has {at} bytes, {len(content)} were written" in fate(root, x)
    else:
        content[at] ^= 1 << bit
        path.write_bytes(content)
        fate(root, x)  # between two records nothing is read, and nothing is wrong


def swapped(folder: Path) -> None:
    a, b, other = folder / "00000.shard", folder / "00001.shard", folder / "other"
    a.rename(other)
    b.rename(a)
    other.rename(b)


def of_another_entry(folder: Path) -> None:
    root = folder.parent / "another"
    make(root, key(prefix="5" * 32))
    for file in (root / key(prefix="5" * 32).digest()).glob("*.shard"):
        shutil.copy(file, folder)
    shutil.rmtree(root)


def of_another_making(folder: Path) -> None:
    """As a network computes them whose sums differ from run to run: the same entry by name, of the same size."""
    root = folder.parent / "another"
    with cache.make_entries(root, [(KEY, INFO)], images(10)) as writers:
        for part in (-features(20, writers[0].shape, seed=5)).split(7):
            writers[0].append(part)
    shutil.copy(root / KEY.digest() / "00000.shard", folder)
    shutil.rmtree(root)


def of_other_weights(folder: Path) -> None:
    other = key(prefix="5" * 32)
    make(folder.parent, other)
    shutil.rmtree(folder)
    (folder.parent / other.digest()).rename(folder)


def of_other_weights_that_says_otherwise(folder: Path) -> None:
    """Its `entry.json` made to fit, checksum and all: each shard knows whose it is."""
    of_other_weights(folder)
    said = json.loads((folder / "entry.json").read_text())
    del said["checksum"]
    said["key"]["prefix"] = KEY.prefix
    (folder / "entry.json").write_bytes(on_disk.encode_manifest(said))


def edited(folder: Path) -> None:
    path = folder / "entry.json"
    path.write_text(path.read_text().replace("baseA", "baseB"))


def fewer_images(folder: Path) -> None:
    said = json.loads((folder / "entry.json").read_text())
    del said["checksum"]
    said["images"] = 9
    (folder / "entry.json").write_bytes(on_disk.encode_manifest(said))


def not_a_folder(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("in the way")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (swapped, r"00000\.shard: has \d+ bytes, \d+ were written"),
        (of_another_entry, "is not the shard that was written"),
        (of_another_making, r"00000\.shard: (is not the shard|has)"),
        (of_other_weights, "which was moved to this place"),
        (of_other_weights_that_says_otherwise, "belongs to entry"),
        (edited, "its checksum does not match its contents"),
        (fewer_images, "do not hold 9 images in 2 views"),
        (lambda folder: (folder / "00001.shard").unlink(), r"00001\.shard: is missing"),
        (lambda folder: (folder / "entry.json").unlink(), r"its entry\.json is missing"),
        (lambda folder: (folder / "entry.json").write_text("[" * 100_000), "cannot be read"),
        (lambda folder: (folder / "entry.json").write_text("[1]"), "cannot be read"),
        (lambda folder: (folder / "images.npy").unlink(), r"images\.npy: is missing"),
        (lambda folder: (folder / "images.npy").write_bytes(b""), r"images\.npy: its checksum does not match"),
        (not_a_folder, r"its entry\.json is missing"),
    ],
)
def test_the_sentence_says_what_is_damaged(
    whole: tuple[Path, Tensor], damage: Callable[[Path], None], says: str
) -> None:
    root, x = whole
    damage(root / KEY.digest())
    assert re.search(says, fate(root, x))
    assert same(make(root), x)
    assert fate(root, x) == "read"


def test_a_newer_version_is_refused_and_stays(whole: tuple[Path, Tensor]) -> None:
    """It is not damaged: that another program will read it may be all that it is there for."""
    root, x = whole
    path = root / KEY.digest() / "entry.json"
    text = path.read_bytes()
    for version, says in (
        (
            FORMAT + 1,
            rf"a newer fasttransfer \(format {FORMAT + 1}, this one reads {FORMAT}\): update fasttransfer or ",
        ),
        (FORMAT - 1, rf"an older fasttransfer \(format {FORMAT - 1}, this one reads {FORMAT}\): remove the entry with"),
    ):
        said = json.loads(text)
        del said["checksum"]
        path.write_bytes(on_disk.encode_manifest({**said, "format": version, "unheard of": True}))
        with pytest.raises(OtherVersionError, match=rf"\(format {version}, this one reads {FORMAT}\)"):
            cache.find_entry(root, KEY)
        with pytest.raises(OtherVersionError, match=says), cache.make_entries(root, [(KEY, INFO)], images(10)):
            pass
        sentences: list[str] = []
        assert cache.list_entries(root, sentences.append) == [] and re.search(says, sentences[0])
    path.write_bytes(text)
    assert fate(root, x) == "read"


def test_a_listing_leaves_everything_where_it_is(whole: tuple[Path, Tensor]) -> None:
    root, _ = whole
    make(root, key(cut=6))
    (root / KEY.digest() / "00000.shard").write_bytes(b"")
    (root / "notes.txt").touch()
    said: list[str] = []
    assert [entry.key.cut for entry in cache.list_entries(root, said.append)] == [6]
    assert len(said) == 1 and "00000.shard: has 0 bytes" in said[0]
    assert (root / KEY.digest()).exists()


def test_what_was_made_again_is_not_set_aside_for_the_damage_of_the_one_before(whole: tuple[Path, Tensor]) -> None:
    root, x = whole
    entry = found(root)
    cache.remove_entry(entry.folder)
    make(root)
    on_disk.quarantine(entry, CorruptFileError("its record"), pytest.fail)
    assert fate(root, x) == "read"
    on_disk.quarantine(found(root), CorruptFileError("its record"), lambda sentence: None)
    assert cache.find_entry(root, KEY) is None
    on_disk.quarantine(entry, CorruptFileError("its record"), pytest.fail)  # nothing is there


# Killed


def in_a_child(work: Callable[[], None]) -> int:
    """Runs `work` in a process of its own; returns how that ended."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed_at(point: str, root: Path) -> None:
    """Makes the entries of cuts 5 and 6, and is killed half way."""
    rename, renamed = Path.rename, []

    def rename_or_die(path: Path, target: Path) -> Path:
        if point == "before the first rename" or (point == "between the renames" and renamed):
            kill()
        renamed.append(path)
        return rename(path, target)

    Path.rename = rename_or_die  # type: ignore[method-assign,assignment]
    wanted = [(key(cut=cut), INFO) for cut in (5, 6)]
    with cache.make_entries(root, wanted, images(10)) as writers:
        if point == "before a record":
            kill()
        for writer in writers:
            for part in features(20, writer.shape, seed=writer.key.cut).split(7):
                writer.append(part)
                if point == "in a shard" and writer.key.cut == 6:
                    kill()
        if point == "before the end":
            kill()
    kill()


POINTS = {
    "before a record": set(),
    "in a shard": set(),
    "before the end": set(),
    "before the first rename": set(),
    "between the renames": {5},
    "after all": {5, 6},
}


@pytest.mark.parametrize("point", POINTS)
def test_a_killed_maker_leaves_what_is_whole_or_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    monkeypatch.setattr(cache, "SHARD_BYTES", SMALL)
    root = tmp_path / "cache"
    assert in_a_child(lambda: killed_at(point, root)) == -signal.SIGKILL
    assert {entry.key.cut for entry in cache.list_entries(root, pytest.fail)} == POINTS[point]
    left = list(root.glob(".*.tmp"))
    assert len(left) == 2 - len(POINTS[point])
    if point == "in a shard":  # by one who wants another entry
        make(root, key(cut=1))
        assert not list(root.glob(".*.tmp"))
    for cut in (5, 6):
        x = make(root, key(cut=cut))
        with found(root, key(cut=cut)).open() as reader:
            assert same(reader.read(range(20)), x)
    assert not list(root.glob(".*.tmp")) and not cache.list_damaged(root)


def test_a_prune_that_is_killed_leaves_no_half_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path)
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: kill())
    assert in_a_child(lambda: print(cache.prune(tmp_path, 0))) == -signal.SIGKILL
    monkeypatch.undo()
    assert cache.find_entry(tmp_path, KEY, pytest.fail) is None and len(list(tmp_path.glob(".*.tmp"))) == 1
    cache.prune(tmp_path, 1 << 40)
    assert not list(tmp_path.glob(".*.tmp"))


# Many at once


def test_of_two_makers_one_makes_and_the_other_waits(tmp_path: Path) -> None:
    made, wanted = features(20, KEY.geometry.cut_shape(5)), [(KEY, INFO), (key(cut=6), INFO)]
    begun, go = os.pipe(), os.pipe()

    def first() -> None:
        with cache.make_entries(tmp_path, wanted[:1], images(10)) as writers:
            writers[0].append(made[:3])
            os.write(begun[1], b"1")
            os.read(go[0], 1)
            writers[0].append(made[3:])

    child = os.fork()
    if child == 0:
        first()
        os._exit(0)
    os.read(begun[0], 1)
    said: list[str] = []

    def release(sentence: str) -> None:
        said.append(sentence)
        assert not list(tmp_path.glob("[0-9a-f]*"))
        os.write(go[1], b"1")

    with cache.make_entries(tmp_path, wanted, images(10), release) as writers:
        assert [writer.key.cut for writer in writers] == [6]
        with found(tmp_path).open() as reader:
            assert same(reader.read(range(20)), made)
        writers[0].append(features(20, (16,)))
    assert said == ["waiting for another process that computes features of baseA.s0 at cut 5"]
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_makers_who_want_the_same_in_another_order_do_not_wait_for_each_other_forever(tmp_path: Path) -> None:
    wanted = [(key(cut=cut), INFO) for cut in range(1, 7)]
    made: list[int] = []

    def work(order: list[tuple[CacheKey, EntryInfo]]) -> None:
        with cache.make_entries(tmp_path, order, images(2), lambda sentence: None) as writers:
            for writer in writers:
                writer.append(features(4, writer.shape))
                made.append(writer.key.cut)

    threads = [threading.Thread(target=work, args=(wanted[i:] + wanted[:i],), daemon=True) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in threads)
    assert sorted(made) == [1, 2, 3, 4, 5, 6]


def test_pruned_and_made_again_and_again_while_others_read(whole: tuple[Path, Tensor]) -> None:
    """A reader meets the whole entry or none: both more than once, however long that takes."""
    root, x = whole
    ended, wrong, rounds, met = threading.Event(), list[str](), 0, Counter[str]()

    def churn() -> None:
        nonlocal rounds
        while not ended.wait(0.005):
            assert len(cache.prune(root, 0)) == 1
            make(root)
            rounds += 1

    def read_once() -> str:
        entry = cache.find_entry(root, KEY, wrong.append)
        if entry is None:
            return "none"
        try:
            with entry.open(threads=1, log=wrong.append) as reader:
                assert same(reader.read(range(20)), x)
        except RemovedError:
            return "gone"
        return "whole"

    def enough() -> bool:
        met[read_once()] += 1
        return rounds >= 20 and met["whole"] >= 20 and met["none"] + met["gone"] >= 5

    thread = threading.Thread(target=churn)
    thread.start()
    end = time.monotonic() + PATIENCE
    try:
        while not enough() and thread.is_alive() and time.monotonic() < end:
            pass
    finally:
        ended.set()
        thread.join()
    assert enough(), (rounds, met)
    assert not wrong and not cache.list_damaged(root)


# Disks


def test_a_disk_that_fills_up(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    big = key(cut=1)

    def fill() -> None:
        make(small_disk / "cache", big, n=1000, share=0.9)

    with pytest.raises(InputError, match=r"cut 1 will take about 1 MB, the disk has 0 MB free: .*cache prune"):
        fill()
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1 << 40))
        with pytest.raises(InputError, match=r"cannot write here .no space left on device"):
            fill()
    assert all(name.endswith(".lock") for name in os.listdir(small_disk / "cache"))
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    fill()
    found(small_disk / "cache", big).verify()


def test_a_full_disk_is_read_and_pruned(small_disk: Path) -> None:
    x = make(small_disk)
    (small_disk / "other").write_bytes(bytes(small_disk.stat().st_blksize))
    with pytest.raises(OSError, match="No space"):
        (small_disk / "more").write_bytes(bytes(1 << 20))
    entry = found(small_disk)
    entry.count_use()
    with entry.open() as reader:
        assert same(reader.read(range(20)), x)
    assert cache.prune(small_disk, 0)


def test_a_read_only_disk_is_read_and_not_written(small_disk: Path) -> None:
    x = make(small_disk)
    make(small_disk, key(cut=6))
    (small_disk / key(cut=6).digest() / "00000.shard").write_bytes(b"damaged")
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    entry = found(small_disk)
    entry.count_use()
    assert entry.use.hits == 0
    with entry.open() as reader:
        assert same(reader.read(range(20)), x)
    with cache.make_entries(small_disk, [(KEY, INFO)], images(10)) as writers:
        assert writers == []
    said: list[str] = []
    assert cache.find_entry(small_disk, key(cut=6), said.append) is None
    assert len(said) == 1 and "left alone" in said[0] and "read-only file system" in said[0]
    for refused in (
        lambda: make(small_disk, key(cut=6)),
        lambda: cache.prune(small_disk, 0),
        lambda: cache.remove_entry(entry.folder),
    ):
        with pytest.raises(InputError, match="read-only file system"):
            refused()


def test_what_may_not_be_read_is_told_and_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path)

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", refuse)  # of root nothing is kept from
        with pytest.raises(UnreadableEntryError, match=r"cannot be read .permission denied"):
            cache.find_entry(tmp_path, KEY)
    assert found(tmp_path)
