"""Entries come back bit for bit, appear whole, and are pruned from the least recently used on."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import torch
from entries import INFO, KEY, draw_features, find, images, is_same, key, make

from fasttransfer.features import cache
from fasttransfer.features.cache_entry import UnreadableEntryError

pytest.importorskip("fasttransfer.features._shards")


def test_an_entry_comes_back_as_it_was_made(tmp_path: Path) -> None:
    assert cache.find_entry(tmp_path / "none", KEY) is None
    x = make(tmp_path)
    entry = find(tmp_path)
    assert (entry.key, entry.info, entry.images, entry.views) == (KEY, INFO, 10, 2)
    assert entry.packed and entry.shape == KEY.shape and entry.dense == x.nbytes
    files = {file.name: file.stat().st_size for file in entry.folder.iterdir()}
    assert files.keys() == {"00000.shard", "entry.json", "images.npy", "uses"} and files["00000.shard"] == entry.bytes
    with entry.open() as reader:
        assert is_same(reader.read(range(20)), x)
    rows, labels = entry.listing()
    assert rows.tolist() == list(range(0, 30, 3)) and labels.tolist() == [0, 1] * 5
    assert cache.find_entry(tmp_path, key(cut=4)) is None


@pytest.mark.parametrize("cut", [1, 2, 3, 4, 5, 6])
def test_every_cut_in_many_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: int) -> None:
    monkeypatch.setattr(cache, "SHARD_BYTES", 800)
    wanted = key(cut=cut)
    x = make(tmp_path, wanted, n=50)
    entry = find(tmp_path, wanted)
    assert len(entry.shards) > 2 and sum(shard.records for shard in entry.shards) == 100
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    with entry.open(threads=2) as reader:
        assert is_same(reader.read(order), x[order])


def test_features_without_zeros_are_stored_dense(tmp_path: Path) -> None:
    x = make(tmp_path, share=1.0)
    entry = find(tmp_path)
    assert not entry.packed
    with entry.open() as reader:
        assert is_same(reader.read(range(20)), x)


def test_an_entry_of_no_images(tmp_path: Path) -> None:
    make(tmp_path, n=0)
    with find(tmp_path).open() as reader:
        assert len(reader) == 0


def test_only_missing_entries_are_made(tmp_path: Path) -> None:
    make(tmp_path, key(cut=2))
    cuts = [6, 2, 1, 6]
    with cache.make_entries(tmp_path, [(key(cut=cut), INFO) for cut in cuts], images(3)) as writers:
        assert [writer.key.cut for writer in writers] == [6, 1]
        for writer in writers:
            writer.append(draw_features(6, writer.shape))
        assert not cache.find_entry(tmp_path, key(cut=6))
    assert {entry.key.cut for entry in cache.list_entries(tmp_path)} == {1, 2, 6}


def test_an_interrupted_maker_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with cache.make_entries(tmp_path, [(key(cut=c), INFO) for c in (1, 6)], images(10)) as writers:
            writers[0].append(draw_features(4, writers[0].shape))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert all(name.endswith(".lock") for name in os.listdir(tmp_path))
    with (
        pytest.raises(RuntimeError, match="4 records were appended, the entry has 20"),
        cache.make_entries(tmp_path, [(KEY, INFO)], images(10)) as writers,
    ):
        writers[0].append(draw_features(4, writers[0].shape))
    assert all(name.endswith(".lock") for name in os.listdir(tmp_path))
    make(tmp_path)
    assert find(tmp_path)


def test_an_error_of_the_caller_is_not_taken_for_one_of_the_cache(tmp_path: Path) -> None:

    def unreadable() -> None:
        with cache.make_entries(tmp_path, [(KEY, INFO)], images(10)) as writers:
            writers[0].append(draw_features(4, writers[0].shape))
            raise PermissionError(13, "Permission denied", "images")

    with pytest.raises(PermissionError, match="Permission denied: 'images'"):
        unreadable()
    assert cache.find_entry(tmp_path, KEY) is None


def test_concurrent_uses_are_all_counted(tmp_path: Path) -> None:
    make(tmp_path)
    entry = find(tmp_path)
    before = entry.use
    assert before.hits == 0 and before.last > 0
    os.utime(entry.folder / "uses", (1e9, 1e9))

    def use() -> None:
        for _ in range(50):
            entry.count_use()

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert entry.use.hits == 200 and entry.use.last >= before.last
    (entry.folder / "uses").unlink()
    assert find(tmp_path).use.hits == 0
    entry.count_use()
    assert entry.use.hits == 1


def three(root: Path) -> dict[int, int]:
    """Make entries of cuts 1, 5 and 6, last used in the order 5, 6, 1, and return their bytes."""
    for cut, last in ((1, 30), (5, 10), (6, 20)):
        make(root, key(cut=cut))
        os.utime(find(root, key(cut=cut)).folder / "uses", (last, last))
    return {entry.key.cut: entry.bytes for entry in cache.list_entries(root)}


def cuts(root: Path) -> set[int]:
    return {entry.key.cut for entry in cache.list_entries(root)}


def test_prune_removes_the_least_recently_used_first(tmp_path: Path) -> None:
    sizes = three(tmp_path)
    assert cache.prune(tmp_path, sum(sizes.values())) == []
    assert [entry.key.cut for entry in cache.prune(tmp_path, sum(sizes.values()) - 1)] == [5]
    assert cuts(tmp_path) == {1, 6}
    find(tmp_path, key(cut=6)).count_use()
    assert [entry.key.cut for entry in cache.prune(tmp_path, sizes[6])] == [1]
    assert cuts(tmp_path) == {6}
    cache.prune(tmp_path, 0)
    assert all(name.endswith(".lock") for name in os.listdir(tmp_path))
    assert cache.prune(tmp_path / "none", 0) == []


def test_prune_removes_leftovers_and_quarantined_entries(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / f"{'a' * 32}.damaged").mkdir()
    left = tmp_path / f".{'b' * 32}.tmp"
    left.mkdir()
    (tmp_path / f".{'b' * 32}.lock").touch()
    cache.prune(tmp_path, 1 << 40)
    assert not left.exists() and not cache.list_damaged(tmp_path) and cuts(tmp_path) == {5}


def test_a_removed_entry_stays_readable_to_its_reader(tmp_path: Path) -> None:
    x = make(tmp_path)
    entry = find(tmp_path)
    with entry.open() as reader:
        assert cache.prune(tmp_path, 0) == [entry]
        assert is_same(reader.read(range(20)), x)
        make(tmp_path)
        assert is_same(reader.read(range(20)), x)
    cache.remove_entry(find(tmp_path).folder)
    with pytest.raises(UnreadableEntryError, match="run the same command again"):
        entry.open()
    entry.count_use()
    assert not entry.folder.exists()


def test_prune_spares_an_entry_that_is_being_made(tmp_path: Path) -> None:
    with cache.make_entries(tmp_path, [(KEY, INFO)], images(1)) as writers:
        assert cache.prune(tmp_path, 0) == []
        assert not cache.remove_entry(tmp_path / KEY.digest())
        writers[0].append(draw_features(2, writers[0].shape))
    assert cuts(tmp_path) == {5}
