from __future__ import annotations

import json
import os
import resource
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sources import by_class, write

from fasttransfer.core import progress
from fasttransfer.core.errors import InputError
from fasttransfer.pipelines import shard_writer, write_store
from fasttransfer.pipelines.decode import decode
from fasttransfer.pipelines.prepare import prepare
from fasttransfer.pipelines.store import Digest, JpegStorePart, RawStorePart, Store, shard_name
from fasttransfer.pipelines.verification import verify

CLASSES = ("cat", "dog", "eel")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """21 training images in shards of 8, 8 and 5 rows, and 6 to validate on."""
    monkeypatch.setattr(shard_writer, "SHARD_BYTES", 8 * 6 * 6 * 3 + 5)
    source = write(tmp_path / "source", by_class("train/", CLASSES, 7) | by_class("val/", CLASSES, 2))
    return prepare(source, size=6, cache=tmp_path / "cache", log=lambda text: None)


@pytest.fixture
def jpegs(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The same images as JPEGs, 8 or so a shard."""
    monkeypatch.setattr(shard_writer, "SHARD_BYTES", 8 * 2048)
    source = Path(store.manifest["source"])
    return prepare(source, size=6, cache=tmp_path / "cache", kind="jpeg", log=lambda text: None)


def refusal(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        Store.open(folder)
    return str(caught.value)


def test_the_files_of_a_raw_store_are_plain_numpy(store: Store) -> None:
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
    verify(again)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), cuts=st.lists(st.integers(0, 9), min_size=1, max_size=5))
def test_gather_keeps_order_and_repeats(data: st.DataObject, cuts: list[int]) -> None:
    count = sum(cuts)
    whole = np.random.default_rng(count).integers(0, 256, (count, 2, 2, 3), dtype=np.uint8)
    starts = np.cumsum([0, *cuts], dtype=np.int64)
    shards = tuple(whole[start : start + rows] for start, rows in zip(starts, cuts, strict=False))
    part = RawStorePart(np.zeros(count, np.int64), shards, starts[:-1], 2)
    rows = data.draw(st.lists(st.integers(0, count - 1), max_size=30) if count else st.just([]))
    kind = data.draw(st.sampled_from([np.int64, np.int32]))
    found = part.gather(np.asarray(rows, dtype=kind))
    assert found.dtype == np.uint8 and found.flags.owndata
    assert np.array_equal(found, whole[np.asarray(rows, dtype=np.int64)])


@pytest.mark.parametrize("row", [-1, 21])
def test_gather_refuses_rows_that_are_not_there(store: Store, row: int) -> None:
    with pytest.raises(IndexError, match="21 images"):
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


def test_the_files_of_a_jpeg_store(jpegs: Store) -> None:
    shards = {f"train-{i:04d}.tar" for i in range(len(jpegs.manifest["parts"]["train"]["shards"]))} | {"val-0000.tar"}
    small = {"manifest.json", "train-labels.npy", "val-labels.npy", "train-index.npy", "val-index.npy"}
    assert {path.name for path in jpegs.folder.iterdir()} == shards | small and len(shards) >= 3
    index = np.load(jpegs.folder / "train-index.npy")
    assert index.dtype == np.int64 and index.shape == (21, 2)


def test_a_jpeg_store_gathers_what_the_jpegs_show(jpegs: Store) -> None:
    assert isinstance(jpegs.train, JpegStorePart) and jpegs.kind == "jpeg"
    rows = np.array([20, 0, 7, 7, 12])
    wanted = [decode(jpegs.train.read(int(row)), 6) for row in rows]
    assert np.array_equal(jpegs.train.gather(rows), wanted)
    assert jpegs.train.gather(np.arange(0)).shape == (0, 6, 6, 3)
    for row in (-1, 21):
        with pytest.raises(IndexError):
            jpegs.train.read(row)
        with pytest.raises(IndexError):
            jpegs.train.gather(np.array([row]))


def test_gather_names_an_image_that_rotted(jpegs: Store) -> None:
    assert isinstance(jpegs.train, JpegStorePart)
    offset, size = map(int, jpegs.train.index[3])
    with open(jpegs.train.files[0], "r+b") as file:
        file.seek(offset + size // 2)
        file.write(b"\0" * (size // 2))
    jpegs.train.gather(np.array([0, 2, 4]))
    with pytest.raises(InputError, match=r"the store is damaged \(00000003\.jpg in train-0000\.tar: "):
        jpegs.train.gather(np.array([2, 3]))


@pytest.mark.parametrize("file", ["train-0001.tar", "train-index.npy"])
@pytest.mark.parametrize("left", [0, -1])
def test_a_truncated_file_of_a_jpeg_store(jpegs: Store, file: str, left: int) -> None:
    write(jpegs.folder, {file: (jpegs.folder / file).read_bytes()[:left]})
    assert "the store is damaged" in refusal(jpegs.folder)


def test_a_jpeg_store_without_a_shard(jpegs: Store) -> None:
    (jpegs.folder / "train-0001.tar").unlink()
    assert "train-0001.tar" in refusal(jpegs.folder)


def test_a_reader_keeps_a_jpeg_store_open_and_lets_go_of_it(jpegs: Store) -> None:
    def opened() -> int:
        files = map(os.path.realpath, Path("/proc/self/fd").iterdir())
        return sum(file.startswith(str(jpegs.folder)) for file in files)

    shards = opened()
    assert shards >= 3
    another = Store.open(jpegs.folder)
    assert opened() == 2 * shards
    del another
    assert opened() == shards


def test_a_store_may_have_more_shards_than_files_may_usually_be_open(store: Store) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd"))
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 2, limits[1]))
        assert len(Store.open(store.folder).train.shards) == 3  # type: ignore[attr-defined]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def unfit(store: Store) -> str:
    """Return the message of verify."""
    with pytest.raises(InputError, match="delete the folder") as caught:
        verify(Store.open(store.folder))
    return str(caught.value)


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 2
    path.write_bytes(data)


RAW_FILES = {"train-0001.npy": "train images 8 to 15", "val-0000.npy": "val images 0 to 5", "train-labels.npy": ""}
JPEG_FILES = {"train-0000.tar": "train images 0 to", "val-0000.tar": "val images 0 to 5", "val-labels.npy": ""}


@pytest.mark.parametrize(("file", "holds"), RAW_FILES.items())
def test_verify_finds_one_changed_bit(store: Store, file: str, holds: str) -> None:
    flip(store.folder / file, -8)
    message = unfit(store)
    assert file in message and holds in message


@pytest.mark.parametrize(("file", "holds"), (JPEG_FILES | {"train-index.npy": ""}).items())
def test_verify_finds_one_changed_bit_of_a_jpeg_store(jpegs: Store, file: str, holds: str) -> None:
    flip(jpegs.folder / file, -8 if file.endswith(".npy") else 900)
    message = unfit(jpegs)
    assert file in message and holds in message


@pytest.mark.parametrize("kind", ["store", "jpegs"])
def test_verify_finds_shards_that_were_swapped(kind: str, request: pytest.FixtureRequest) -> None:
    store: Store = request.getfixturevalue(kind)
    first, second = (store.folder / shard_name("train", number, store.kind) for number in (0, 1))
    if store.kind == "jpeg":  # of one length, so that opening sees nothing
        length = max(path.stat().st_size for path in (first, second))
        assert first.stat().st_size == second.stat().st_size == length
    whole = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(whole)
    message = unfit(store)
    assert first.name in message and second.name in message


def test_verify_finds_a_shard_that_was_cut(store: Store) -> None:
    opened = Store.open(store.folder)
    os.truncate(store.folder / "train-0002.npy", 200)
    with pytest.raises(InputError, match=r"train-0002\.npy with train images 16 to 20"):
        verify(opened)


def test_verify_decodes_what_a_jpeg_store_holds(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files may be as they were written and still hold no images."""
    encode = write_store._encode_jpeg

    def broken(pixels: np.ndarray) -> bytes:
        return b"no JPEG" if np.array_equal(pixels, image) else encode(pixels)

    image = store.train.gather(np.array([9]))[0]
    monkeypatch.setattr(write_store, "_encode_jpeg", broken)
    source = Path(store.manifest["source"])
    jpegs = prepare(source, size=6, cache=tmp_path / "other", kind="jpeg", log=lambda text: None)
    assert "train image 9, which cannot be decoded" in unfit(jpegs)


def test_verify_finds_a_changed_manifest(store: Store) -> None:
    for change in ({"classes": ["cat", "eel", "dog"]}, {"words": {"cat": "hat"}}, {"digest": "0" * 32}):
        write(store.folder, {"manifest.json": json.dumps(store.manifest | change)})
        assert "manifest.json" in unfit(store)


def test_verify_logs_its_progress(jpegs: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    lines: list[str] = []
    verify(jpegs, lines.append)
    assert any(text.startswith("verify: reading: 21 of 27 images, ") for text in lines)
    assert lines[-1].startswith("verify: decoding: 27 of 27 images, ")


def test_the_digest_of_the_same_images_stays_what_it_always_was() -> None:
    """Studies on disk name their images by it."""
    digest = Digest(("a", "b", "c"), 4, "raw")
    digest.facts(np.array([0, 0, 1, 1, 2]))
    digest.images(bytes(range(240)))
    digest.facts(np.array([], np.int64))
    assert digest.hexdigest() == "66b18b5863fca7515712a02663c7ea6d"


def test_the_digest_does_not_see_how_rows_are_cut(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_writer, "SHARD_BYTES", 1 << 20)
    source = Path(store.manifest["source"])
    whole = prepare(source, size=6, cache=store.folder.parents[1] / "other", log=lambda text: None)
    assert len(whole.train.shards) == 1 and whole.digest == store.digest


def test_classes_without_both_parts_are_refused_only_where_they_are_used(tmp_path: Path) -> None:
    source = write(tmp_path / "source", by_class("", CLASSES, 1) | by_class("", ("fox", "gnu"), 3))
    store = prepare(source, size=6, cache=tmp_path / "cache", log=lambda text: None)
    store.require_both_parts(["fox", "gnu"])
    with pytest.raises(InputError, match=r"no validation image of cat, dog: give each class at least two"):
        store.require_both_parts(["cat", "dog", "fox"])
