from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sources import by_class, write

from fasttransfer.errors import InputError
from fasttransfer.pipelines import writer
from fasttransfer.pipelines.prepare import prepare
from fasttransfer.pipelines.store import Part, Store, shard_name

CLASSES = ("cat", "dog", "eel")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """21 training pictures in shards of 8, 8 and 5 rows, and 6 to validate on."""
    monkeypatch.setattr(writer, "SHARD_BYTES", 8 * 6 * 6 * 3 + 5)
    source = write(tmp_path / "source", by_class("train/", CLASSES, 7) | by_class("val/", CLASSES, 2))
    return prepare(source, size=6, cache=tmp_path / "cache", say=lambda text: None)


def refusal(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        Store.open(folder)
    return str(caught.value)


def test_what_is_on_disk_is_plain_numpy(store: Store) -> None:
    names = {path.name for path in store.folder.iterdir()}
    assert names == {
        "manifest.json",
        "train-0000.npy",
        "train-0001.npy",
        "train-0002.npy",
        "train-labels.npy",
        "val-0000.npy",
        "val-labels.npy",
    }
    shards = [np.load(store.folder / f"train-000{i}.npy") for i in range(3)]
    assert [shard.shape for shard in shards] == [(8, 6, 6, 3), (8, 6, 6, 3), (5, 6, 6, 3)]
    assert all(shard.dtype == np.uint8 for shard in shards)
    assert np.array_equal(np.concatenate(shards), store.train.gather(np.arange(21)))
    labels = np.load(store.folder / "train-labels.npy")
    assert labels.dtype == np.int64 and labels.tolist() == [0] * 7 + [1] * 7 + [2] * 7
    assert np.array_equal(labels, store.train.labels)


def test_open_gives_what_prepare_gave(store: Store) -> None:
    again = Store.open(store.folder)
    assert (again.size, again.classes, again.digest, again.words) == (6, CLASSES, store.digest, store.words)
    assert (len(again.train), len(again.val)) == (21, 6)
    again.verify()


@settings(max_examples=60, deadline=None)
@given(data=st.data(), cuts=st.lists(st.integers(0, 9), min_size=1, max_size=5))
def test_gather_keeps_order_and_repeats(data: st.DataObject, cuts: list[int]) -> None:
    count = sum(cuts)
    whole = np.random.default_rng(count).integers(0, 256, (count, 2, 2, 3), dtype=np.uint8)
    starts = np.cumsum([0, *cuts], dtype=np.int64)
    shards = tuple(whole[start : start + rows] for start, rows in zip(starts, cuts, strict=False))
    part = Part(np.zeros(count, np.int64), shards, starts[:-1], 2)
    rows = data.draw(st.lists(st.integers(0, count - 1), max_size=30) if count else st.just([]))
    kind = data.draw(st.sampled_from([np.int64, np.int32]))
    found = part.gather(np.asarray(rows, dtype=kind))
    assert found.dtype == np.uint8 and found.flags.owndata
    assert np.array_equal(found, whole[np.asarray(rows, dtype=np.int64)])


@pytest.mark.parametrize("row", [-1, 21])
def test_gather_refuses_rows_that_are_not_there(store: Store, row: int) -> None:
    with pytest.raises(IndexError, match="21 pictures"):
        store.train.gather(np.array([0, row]))


def test_the_map_is_read_only(store: Store) -> None:
    with pytest.raises(ValueError, match="read-only"):
        store.train.shards[0][0] = 0


def test_no_store(tmp_path: Path) -> None:
    assert "is not a prepared store" in refusal(tmp_path)
    assert "is not a prepared store" in refusal(tmp_path / "nothing")


def test_another_version(store: Store) -> None:
    write(store.folder, {"manifest.json": json.dumps(store.manifest | {"format": 99})})
    assert "store format 99" in refusal(store.folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"format": 1}', '{"format": 1, "size": "x", "classes": []}'])
def test_a_damaged_manifest(store: Store, text: str) -> None:
    write(store.folder, {"manifest.json": text})
    assert str(store.folder) in refusal(store.folder)


@pytest.mark.parametrize("file", ["train-0000.npy", "train-0002.npy", "val-0000.npy", "train-labels.npy"])
@pytest.mark.parametrize("left", [0, 20, -1])
def test_a_truncated_file_says_to_delete_the_folder(store: Store, file: str, left: int) -> None:
    data = (store.folder / file).read_bytes()
    write(store.folder, {file: data[:left]})
    message = refusal(store.folder)
    assert "the store is damaged" in message and "delete the folder" in message


def test_a_missing_file(store: Store) -> None:
    (store.folder / "train-0001.npy").unlink()
    assert "train-0001.npy" in refusal(store.folder)


def test_shapes_and_types_that_do_not_fit(store: Store) -> None:
    file = store.folder / shard_name("train", 2)
    np.save(file, np.zeros((4, 6, 6, 3), np.uint8))
    assert "train-0002.npy has uint8 (4, 6, 6, 3), not uint8 (5, 6, 6, 3)" in refusal(store.folder)
    np.save(file, np.zeros((5, 6, 6, 3), np.int16))
    assert "int16" in refusal(store.folder)
    np.save(file, np.asfortranarray(np.zeros((5, 6, 6, 3), np.uint8)))
    assert "damaged" in refusal(store.folder)


@pytest.mark.parametrize("labels", [np.full(21, 3), np.full(21, -1), np.zeros(20, np.int64), np.zeros(21)])
def test_labels_that_do_not_fit(store: Store, labels: np.ndarray) -> None:
    np.save(store.folder / "train-labels.npy", labels)
    assert "train-labels.npy has" in refusal(store.folder)


def test_pickles_are_never_read(store: Store) -> None:
    np.save(store.folder / "train-labels.npy", np.array([{}] * 21, dtype=object), allow_pickle=True)
    assert "damaged" in refusal(store.folder)


@pytest.mark.parametrize("file", ["train-0001.npy", "val-0000.npy", "train-labels.npy"])
def test_verify_finds_one_changed_byte(store: Store, file: str) -> None:
    data = bytearray((store.folder / file).read_bytes())
    data[-8] ^= 2
    write(store.folder, {file: bytes(data)})
    changed = Store.open(store.folder)
    with pytest.raises(InputError, match="delete the folder"):
        changed.verify()


def test_verify_finds_changed_classes(store: Store) -> None:
    write(store.folder, {"manifest.json": json.dumps(store.manifest | {"classes": ["cat", "eel", "dog"]})})
    with pytest.raises(InputError, match="digest"):
        Store.open(store.folder).verify()


def test_the_digest_does_not_see_how_rows_are_cut(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "SHARD_BYTES", 1 << 20)
    source = Path(store.manifest["source"])
    whole = prepare(source, size=6, cache=store.folder.parents[1] / "other", say=lambda text: None)
    assert len(whole.train.shards) == 1 and whole.digest == store.digest


def test_classes_without_both_parts_are_refused_only_where_they_are_used(tmp_path: Path) -> None:
    source = write(tmp_path / "source", by_class("", CLASSES, 1) | by_class("", ("fox", "gnu"), 3))
    store = prepare(source, size=6, cache=tmp_path / "cache", say=lambda text: None)
    store.need_both_parts(["fox", "gnu"])
    with pytest.raises(InputError, match=r"no validation picture of cat, dog: give each class at least two"):
        store.need_both_parts(["cat", "dog", "fox"])
