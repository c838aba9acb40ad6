"""The feature cache under damage, kill -9, full disks and many processes: only whole entries are read."""

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
from entries import INFO, KEY, draw_features, find, images, is_same, key, make
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from waiting import PATIENCE

from fasttransfer.core.errors import InputError
from fasttransfer.core.tensor_files import CorruptFileError
from fasttransfer.features import cache
from fasttransfer.features import cache_entry as on_disk
from fasttransfer.features.cache_entry import EntryInfo, UnreadableEntryError
from fasttransfer.features.cache_key import FORMAT, CacheKey

pytest.importorskip("fasttransfer.features._shards")

SMALL = 300  # bytes, so that entries have several shards


@pytest.fixture
def whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Tensor]:
    """Return the folder of a cache with one entry of several shards, and its records."""
    monkeypatch.setattr(cache, "SHARD_BYTES", SMALL)
    root = tmp_path / "cache"
    x = make(root)
    assert len(find(root).shards) > 1
    return root, x


def outcome(root: Path, x: Tensor) -> str:
    """Read the one entry of a cache; return "read" if its records are right, else the line that reports the damage."""
    lines: list[str] = []
    entry = cache.find_entry(root, KEY, lines.append)
    if entry is not None:
        try:
            entry.verify(lines.append)
        except CorruptFileError:
            pass
        else:
            with entry.open() as reader:
                assert is_same(reader.read(range(len(x))), x)
            assert not lines
            return "read"
    assert len(lines) == 1 and "\n" not in lines[0] and str(root) in lines[0]
    assert cache.find_entry(root, KEY, lines.append) is None and len(lines) == 1, "it is out of the way"
    assert [folder.name for folder in cache.list_damaged(root)] == [f"{KEY.digest()}.damaged"]
    return lines[0]


def restore(root: Path, copy: Path) -> Path:
    """Return the entry's folder, as it was when `copy` was taken."""
    folder = root / KEY.digest()
    shutil.rmtree(root)
    shutil.copytree(copy, folder)
    return folder


def test_every_flipped_bit_of_the_manifest_is_detected(whole: tuple[Path, Tensor], tmp_path: Path) -> None:
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
            assert outcome(root, x) != "read"
            restore(root, copy)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shard=st.integers(0, 1), place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), cut=st.booleans())
def test_flipped_bits_and_cut_shards_are_detected(
    whole: tuple[Path, Tensor], shard: int, place: float, bit: int, cut: bool
) -> None:
    root, x = whole
    copy = root.parent / "copy"
    if not copy.exists():
        shutil.copytree(root / KEY.digest(), copy)
    path = restore(root, copy) / f"0000{shard}.shard"
    content = bytearray(path.read_bytes())
    at = int(place * len(content))
    if cut:
        path.write_bytes(content[:at])
        assert f"has {at} bytes, {len(content)} were written" in outcome(root, x)
    else:
        content[at] ^= 1 << bit
        path.write_bytes(content)
        outcome(root, x)  # between two records nothing is read, and nothing is wrong


def swap_shards(folder: Path) -> None:
    a, b, other = folder / "00000.shard", folder / "00001.shard", folder / "other"
    a.rename(other)
    b.rename(a)
    other.rename(b)


def take_shards_of_another_entry(folder: Path) -> None:
    root = folder.parent / "another"
    make(root, key(prefix="5" * 32))
    for file in (root / key(prefix="5" * 32).digest()).glob("*.shard"):
        shutil.copy(file, folder)
    shutil.rmtree(root)


def take_a_shard_of_another_making(folder: Path) -> None:
    """The same entry by name, of the same size, from a network whose sums differ from run to run."""
    root = folder.parent / "another"
    with cache.make_entries(root, [(KEY, INFO)], images(10)) as writers:
        for part in (-draw_features(20, writers[0].shape, seed=5)).split(7):
            writers[0].append(part)
    shutil.copy(root / KEY.digest() / "00000.shard", folder)
    shutil.rmtree(root)


def take_the_entry_of_other_weights(folder: Path) -> None:
    other = key(prefix="5" * 32)
    make(folder.parent, other)
    shutil.rmtree(folder)
    (folder.parent / other.digest()).rename(folder)


def take_the_entry_of_other_weights_under_a_changed_key(folder: Path) -> None:
    """Its `entry.json` is changed to fit, with its checksum: each shard has the identity of its entry."""
    take_the_entry_of_other_weights(folder)
    facts = json.loads((folder / "entry.json").read_text())
    del facts["checksum"]
    facts["key"]["prefix"] = KEY.prefix
    (folder / "entry.json").write_bytes(on_disk.encode_manifest(facts))


def edit_manifest(folder: Path) -> None:
    path = folder / "entry.json"
    path.write_text(path.read_text().replace("baseA", "baseB"))


def claim_fewer_images(folder: Path) -> None:
    facts = json.loads((folder / "entry.json").read_text())
    del facts["checksum"]
    facts["images"] = 9
    (folder / "entry.json").write_bytes(on_disk.encode_manifest(facts))


def replace_by_a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("in the way")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (swap_shards, r"00000\.shard: has \d+ bytes, \d+ were written"),
        (take_shards_of_another_entry, "is not the shard that was written"),
        (take_a_shard_of_another_making, r"00000\.shard: (is not the shard|has)"),
        (take_the_entry_of_other_weights, "which was moved to this place"),
        (take_the_entry_of_other_weights_under_a_changed_key, "belongs to entry"),
        (edit_manifest, "its checksum does not match its contents"),
        (claim_fewer_images, "do not hold 9 images in 2 views"),
        (lambda folder: (folder / "00001.shard").unlink(), r"00001\.shard: is missing"),
        (lambda folder: (folder / "entry.json").unlink(), r"its entry\.json is missing"),
        (lambda folder: (folder / "entry.json").write_text("[" * 100_000), "cannot be read"),
        (lambda folder: (folder / "entry.json").write_text("[1]"), "cannot be read"),
        (lambda folder: (folder / "images.npy").unlink(), r"images\.npy: is missing"),
        (lambda folder: (folder / "images.npy").write_bytes(b""), r"images\.npy: its checksum does not match"),
        (replace_by_a_file, r"its entry\.json is missing"),
    ],
)
def test_the_log_names_the_damage(whole: tuple[Path, Tensor], damage: Callable[[Path], None], message: str) -> None:
    root, x = whole
    damage(root / KEY.digest())
    assert re.search(message, outcome(root, x))
    assert is_same(make(root), x)
    assert outcome(root, x) == "read"


def test_an_entry_of_another_version_is_refused_and_stays(whole: tuple[Path, Tensor]) -> None:
    """It is not damaged: another program may be there to read it."""
    root, x = whole
    path = root / KEY.digest() / "entry.json"
    text = path.read_bytes()
    for version, message in (
        (FORMAT + 1, "a newer fasttransfer .*: update fasttransfer or remove the entry with"),
        (FORMAT - 1, "an older fasttransfer .*: remove the entry with"),
    ):
        facts = json.loads(text)
        del facts["checksum"]
        path.write_bytes(on_disk.encode_manifest({**facts, "format": version, "unheard of": True}))
        with pytest.raises(UnreadableEntryError, match=rf"\(format {version}, this one reads {FORMAT}\)"):
            cache.find_entry(root, KEY)
        with pytest.raises(UnreadableEntryError, match=message), cache.make_entries(root, [(KEY, INFO)], images(10)):
            pass
        lines: list[str] = []
        assert cache.list_entries(root, lines.append) == [] and re.search(message, lines[0])
    path.write_bytes(text)
    assert outcome(root, x) == "read"


def test_listing_moves_nothing(whole: tuple[Path, Tensor]) -> None:
    root, _ = whole
    make(root, key(cut=6))
    (root / KEY.digest() / "00000.shard").write_bytes(b"")
    (root / "notes.txt").touch()
    lines: list[str] = []
    assert [entry.key.cut for entry in cache.list_entries(root, lines.append)] == [6]
    assert len(lines) == 1 and "00000.shard: has 0 bytes" in lines[0]
    assert (root / KEY.digest()).exists()


def test_an_entry_made_again_is_not_quarantined_for_the_damage_of_its_predecessor(whole: tuple[Path, Tensor]) -> None:
    root, x = whole
    entry = find(root)
    cache.remove_entry(entry.folder)
    make(root)
    on_disk.quarantine(entry.folder, CorruptFileError("its record"), pytest.fail, entry.checksum)
    assert outcome(root, x) == "read"
    found = find(root)
    on_disk.quarantine(found.folder, CorruptFileError("its record"), lambda sentence: None, found.checksum)
    assert cache.find_entry(root, KEY) is None
    on_disk.quarantine(entry.folder, CorruptFileError("its record"), pytest.fail, entry.checksum)  # nothing is there


def in_a_child(work: Callable[[], None]) -> int:
    """Run `work` in a process of its own and return its exit code."""
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


def make_until_killed(point: str, root: Path) -> None:
    """Make the entries of cuts 5 and 6, and be killed half way."""
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
            for part in draw_features(20, writer.shape, seed=writer.key.cut).split(7):
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
def test_a_killed_maker_leaves_whole_entries_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    monkeypatch.setattr(cache, "SHARD_BYTES", SMALL)
    root = tmp_path / "cache"
    assert in_a_child(lambda: make_until_killed(point, root)) == -signal.SIGKILL
    assert {entry.key.cut for entry in cache.list_entries(root, pytest.fail)} == POINTS[point]
    left = list(root.glob(".*.tmp"))
    assert len(left) == 2 - len(POINTS[point])
    if point == "in a shard":  # by one who wants another entry
        make(root, key(cut=1))
        assert not list(root.glob(".*.tmp"))
    for cut in (5, 6):
        x = make(root, key(cut=cut))
        with find(root, key(cut=cut)).open() as reader:
            assert is_same(reader.read(range(20)), x)
    assert not list(root.glob(".*.tmp")) and not cache.list_damaged(root)


def test_a_killed_prune_leaves_no_half_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path)
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: kill())
    assert in_a_child(lambda: print(cache.prune(tmp_path, 0))) == -signal.SIGKILL
    monkeypatch.undo()
    assert cache.find_entry(tmp_path, KEY, pytest.fail) is None and len(list(tmp_path.glob(".*.tmp"))) == 1
    cache.prune(tmp_path, 1 << 40)
    assert not list(tmp_path.glob(".*.tmp"))


def test_of_two_makers_one_makes_and_the_other_waits(tmp_path: Path) -> None:
    x, wanted = draw_features(20, KEY.shape), [(KEY, INFO), (key(cut=6), INFO)]
    begun, go = os.pipe(), os.pipe()

    def first() -> None:
        with cache.make_entries(tmp_path, wanted[:1], images(10)) as writers:
            writers[0].append(x[:3])
            os.write(begun[1], b"1")
            os.read(go[0], 1)
            writers[0].append(x[3:])

    child = os.fork()
    if child == 0:
        first()
        os._exit(0)
    os.read(begun[0], 1)
    lines: list[str] = []

    def release(sentence: str) -> None:
        lines.append(sentence)
        assert not list(tmp_path.glob("[0-9a-f]*"))
        os.write(go[1], b"1")

    with cache.make_entries(tmp_path, wanted, images(10), release) as writers:
        assert [writer.key.cut for writer in writers] == [6]
        with find(tmp_path).open() as reader:
            assert is_same(reader.read(range(20)), x)
        writers[0].append(draw_features(20, (16,)))
    assert lines == ["waiting for another process that computes features of baseA.s0 at cut 5"]
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_makers_of_the_same_entries_in_other_orders_do_not_deadlock(tmp_path: Path) -> None:
    wanted = [(key(cut=cut), INFO) for cut in range(1, 7)]
    cuts: list[int] = []

    def work(order: list[tuple[CacheKey, EntryInfo]]) -> None:
        with cache.make_entries(tmp_path, order, images(2), lambda sentence: None) as writers:
            for writer in writers:
                writer.append(draw_features(4, writer.shape))
                cuts.append(writer.key.cut)

    threads = [threading.Thread(target=work, args=(wanted[i:] + wanted[:i],), daemon=True) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in threads)
    assert sorted(cuts) == [1, 2, 3, 4, 5, 6]


def test_readers_meet_whole_entries_while_others_prune_and_make_them(whole: tuple[Path, Tensor]) -> None:
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
                assert is_same(reader.read(range(20)), x)
        except UnreadableEntryError:
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
    find(small_disk / "cache", big).verify()


def test_a_full_disk_is_read_and_pruned(small_disk: Path) -> None:
    x = make(small_disk)
    (small_disk / "other").write_bytes(bytes(small_disk.stat().st_blksize))
    with pytest.raises(OSError, match="No space"):
        (small_disk / "more").write_bytes(bytes(1 << 20))
    entry = find(small_disk)
    entry.count_use()
    with entry.open() as reader:
        assert is_same(reader.read(range(20)), x)
    assert cache.prune(small_disk, 0)


def test_a_read_only_disk_is_read_and_not_written(small_disk: Path) -> None:
    x = make(small_disk)
    make(small_disk, key(cut=6))
    (small_disk / key(cut=6).digest() / "00000.shard").write_bytes(b"damaged")
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    entry = find(small_disk)
    entry.count_use()
    assert entry.use.hits == 0
    with entry.open() as reader:
        assert is_same(reader.read(range(20)), x)
    with cache.make_entries(small_disk, [(KEY, INFO)], images(10)) as writers:
        assert writers == []
    lines: list[str] = []
    assert cache.find_entry(small_disk, key(cut=6), lines.append) is None
    assert len(lines) == 1 and "left alone" in lines[0] and "read-only file system" in lines[0]
    for refused in (
        lambda: make(small_disk, key(cut=6)),
        lambda: cache.prune(small_disk, 0),
        lambda: cache.remove_entry(entry.folder),
    ):
        with pytest.raises(InputError, match="read-only file system"):
            refused()


def test_an_entry_without_read_permission_is_an_error_and_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path)

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", refuse)  # of root nothing is kept from
        with pytest.raises(UnreadableEntryError, match=r"cannot be read .permission denied"):
            cache.find_entry(tmp_path, KEY)
    assert find(tmp_path)
