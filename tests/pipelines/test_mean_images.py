"""Mean images: exact, computed once, never read when they are not what was written."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from studies import MANMADE, NATURAL, draw_images

from fasttransfer.core.files import cache_folder
from fasttransfer.pipelines import mean_images
from fasttransfer.pipelines.mean_images import compute_mean_image, load_mean_image
from fasttransfer.pipelines.prepare import prepare
from fasttransfer.pipelines.store import Store
from fasttransfer.pipelines.streams import TaskImages, select_task_images


@pytest.fixture
def store(tmp_path: Path) -> Store:
    source = draw_images(tmp_path / "images", NATURAL + MANMADE)
    return prepare(source, size=32, cache=cache_folder(), log=lambda _: None)


def files(cache: Path) -> list[Path]:
    return sorted((cache / "means").iterdir())


def test_the_mean_is_exact_however_it_is_cut(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    images = select_task_images(store, store.train, NATURAL)
    exact = store.train.gather(images.rows).astype(np.int64).sum(axis=0) / len(images)
    for rows in (1, 7, 1000):
        monkeypatch.setattr(mean_images, "_CHUNK", rows * 32 * 32 * 3)
        found = compute_mean_image(images)
        assert found.dtype == np.float32
        assert np.array_equal(found, exact.astype(np.float32))


def test_a_mean_is_computed_once(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    computed = []

    def counted(images: TaskImages) -> mean_images.Mean:
        computed.append(len(images))
        return compute_mean_image(images)

    monkeypatch.setattr(mean_images, "compute_mean_image", counted)
    first = load_mean_image(store, NATURAL, None, tmp_path)
    assert np.array_equal(load_mean_image(store, NATURAL, None, tmp_path), first)
    assert computed == [30]
    load_mean_image(store, NATURAL, 4, tmp_path)
    load_mean_image(store, NATURAL[:2], None, tmp_path)
    assert computed == [30, 12, 20]
    assert len(files(tmp_path)) == 3
    assert np.array_equal(np.load(next(iter(tmp_path.glob("means/*.npy")))).shape, (32, 32, 3))  # NumPy's own format


@pytest.mark.parametrize("how", ["changed", "cut", "empty", "another size"])
def test_a_damaged_mean_is_computed_again(store: Store, tmp_path: Path, how: str) -> None:
    mean = load_mean_image(store, NATURAL, None, tmp_path)
    (path,) = files(tmp_path)
    content = bytearray(path.read_bytes())
    if how == "changed":
        content[1000] ^= 1
    elif how == "another size":
        mean_images._write(path, np.zeros((16, 16, 3), dtype=np.float32))
        content = bytearray(path.read_bytes())
    else:
        content = content[:500] if how == "cut" else bytearray()
    path.write_bytes(content)
    assert np.array_equal(load_mean_image(store, NATURAL, None, tmp_path), mean)
    assert path.read_bytes() != content  # and written again


def test_a_cache_that_cannot_be_written_is_no_error(store: Store, tmp_path: Path) -> None:
    (tmp_path / "means").write_text("a file, where a folder is needed")
    assert load_mean_image(store, NATURAL, None, tmp_path).shape == (32, 32, 3)


def test_what_a_killed_writer_left_is_removed_when_nobody_can_be_writing_it(store: Store, tmp_path: Path) -> None:
    (tmp_path / "means").mkdir()
    old, new = tmp_path / "means" / ".a.npy.x.tmp", tmp_path / "means" / ".b.npy.y.tmp"
    old.touch()
    new.touch()
    os.utime(old, (0, 0))
    load_mean_image(store, store.classes, None, tmp_path)
    assert not old.exists() and new.exists()
