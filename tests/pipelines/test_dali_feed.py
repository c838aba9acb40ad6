"""The feed of jpeg stores shows the very batches that a raw store of the same pixels would, at any step."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from studies import MANMADE, NATURAL, draw_images

from fasttransfer.core.errors import InputError
from fasttransfer.core.files import cache_folder
from fasttransfer.pipelines import dali_feed
from fasttransfer.pipelines.dali_feed import DaliFeed
from fasttransfer.pipelines.memory_feed import MemoryFeed
from fasttransfer.pipelines.prefetched_feed import PrefetchedFeed
from fasttransfer.pipelines.prepare import prepare, prepare_into
from fasttransfer.pipelines.store import JpegStorePart, RawStorePart, Store, StorePart
from fasttransfer.pipelines.streams import Batch, Feed, Stream, TaskImages, select_task_images

pytestmark = pytest.mark.skipif(not dali_feed.has_dali(), reason="DALI is not installed")

SIDE, CROP, BATCH = 32, 29, 16
LOOK: dict[str, Any] = {"crop": CROP, "scale": 0.5, "device": torch.device("cpu")}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """60 training and 30 validation images."""
    source = draw_images(tmp_path / "images", NATURAL + MANMADE, side=40)
    return prepare(source, size=SIDE, cache=cache_folder(), kind="jpeg", log=lambda text: None)


def feeds_of(store: Store, classes: Sequence[str] = NATURAL, batch: int = BATCH, **look: Any) -> tuple[Feed, Feed]:
    """Return the feed under test, and one that reads the pixels of the store's decoded JPEGs."""
    train, val = (select_task_images(store, part, tuple(classes)) for part in (store.train, store.val))
    stream = Stream(1, 2, len(train), batch, SIDE - CROP)
    random = np.random.default_rng(0)
    means = {task: torch.from_numpy(random.random((SIDE, SIDE, 3), dtype=np.float32) * 255) for task in "AB"}
    plain = [replace(images, part=_decoded(images.part)) for images in (train, val)]
    look = LOOK | look
    return DaliFeed(train, val, stream, means, **look), MemoryFeed(*plain, stream, means, **look)


def _decoded(part: StorePart) -> RawStorePart:
    return RawStorePart(part.labels, (part.gather(np.arange(len(part))),), np.array([0]), part.size)


def same(one: Batch, other: Batch) -> bool:
    return (
        one.images.keys() == other.images.keys()
        and all(torch.equal(one.images[task], other.images[task]) for task in one.images)
        and torch.equal(one.labels, other.labels)
        and torch.equal(one.ids, other.ids)
    )


def test_any_step_at_any_time_bit_for_bit(store: Store) -> None:
    found, expected = feeds_of(store)
    for step in (0, 1, 2, 3, 7, 8, 5, 5, 0, 100, 101, 1):  # 30 images: nearly two steps an epoch
        assert same(found.train(step), expected.train(step)), step


def test_a_batch_of_several_epochs(store: Store) -> None:
    found, expected = feeds_of(store, batch=70)
    for step in range(3):
        assert same(found.train(step), expected.train(step))


def test_validation_with_a_short_last_batch_between_steps(store: Store) -> None:
    found, expected = feeds_of(store, batch=4)  # 15 to validate on: 4, 4, 4, 3
    for step in range(3):
        assert same(found.train(step), expected.train(step))
        assert [len(b.labels) for b in expected.val()] == [4, 4, 4, 3]
        assert all(same(*each) for each in zip(found.val(), expected.val(), strict=True))
    next(found.val())  # and given up
    assert all(same(*each) for each in zip(found.val(), expected.val(), strict=True))
    assert same(found.train(3), expected.train(3))


def test_a_new_feed_goes_on_at_any_step(store: Store) -> None:
    before = [feeds_of(store)[0].train(step) for step in (4, 5)]
    restarted = feeds_of(store)[0]
    assert all(same(restarted.train(step), batch) for step, batch in zip((4, 5), before, strict=True))


def test_a_batch_is_not_overwritten_by_later_ones(store: Store) -> None:
    """DALI's memory is reused as soon as the context of a batch ends."""
    found, expected = feeds_of(store)
    first = found.train(0)
    for step in range(1, 20):
        found.train(step)
    assert same(first, expected.train(0))


def test_images_come_as_the_first_stage_wants_them(store: Store) -> None:
    found, expected = feeds_of(store, block=4, side=9, dtype=torch.bfloat16)
    batch = found.train(3)
    assert batch.images["A"].shape == (BATCH, 48, 9, 9) and batch.images["A"].dtype == torch.bfloat16
    assert same(batch, expected.train(3))


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_and_batches_made_ahead_change_nothing(store: Store, threads: int) -> None:
    inner, expected = feeds_of(store, classes=NATURAL + MANMADE, batch=9)
    inner.close()
    feed = DaliFeed(inner._train, inner._val, inner._stream, inner._means, threads=threads, **LOOK)  # type: ignore[attr-defined]
    found = PrefetchedFeed(feed, lambda: torch.set_num_threads(1))
    for step in (0, 1, 2, 9, 3, 4):
        assert same(found.train(step), expected.train(step))
        if step == 2:
            assert all(same(*each) for each in zip(found.val(), expected.val(), strict=True))
    found.close()


@pytest.fixture
def own(tmp_path: Path) -> Store:
    """A store that a test may damage."""
    source = draw_images(tmp_path / "images", NATURAL + MANMADE)
    return prepare_into(source, tmp_path / "store", size=SIDE, kind="jpeg", log=lambda text: None)


def damage(part: StorePart, row: int) -> None:
    """Overwrite the middle of a JPEG's bytes with its own first ones."""
    assert isinstance(part, JpegStorePart)
    offset, size = map(int, part.index[row])
    with open(part.files[0], "r+b") as file:
        file.seek(offset)
        file.write(b"\0" * size)


def test_an_image_that_rotted_is_named(own: Store) -> None:
    damage(own.train, 17)
    found, expected = feeds_and_clean(own)
    steps = range(4)
    bad = [step for step in steps if 17 in found._train.rows[expected.views(step).ids.numpy()]]
    assert bad and len(bad) < len(steps)
    for step in steps:
        if step in bad:
            with pytest.raises(InputError, match=r"store: the store is damaged \(00000017.jpg in train-0000.tar: .*\)"):
                found.train(step)
        else:
            found.train(step)  # whatever was tried before


def feeds_and_clean(store: Store) -> tuple[DaliFeed, Stream]:
    train, val = (select_task_images(store, part, NATURAL) for part in (store.train, store.val))
    stream = Stream(1, 2, len(train), 8, SIDE - CROP)
    return DaliFeed(train, val, stream, {"A": torch.zeros(SIDE, SIDE, 3)}, **LOOK), stream


def test_a_shard_that_was_cut_is_named(own: Store) -> None:
    assert isinstance(own.train, JpegStorePart)
    found, _ = feeds_and_clean(own)
    with open(own.train.files[0], "r+b") as file:
        file.truncate(int(own.train.index[5, 0]))
    with pytest.raises(InputError, match=r"in train-0000.tar: .*ends too early"):
        found.train(0)


def test_an_image_of_another_size_is_named(own: Store, tmp_path: Path) -> None:
    larger = prepare_into(tmp_path / "images", tmp_path / "larger", size=33, kind="jpeg", log=lambda text: None)
    assert isinstance(larger.train, JpegStorePart)
    wrong = JpegStorePart(larger.train.labels, larger.train.files, larger.train.starts, larger.train.index, SIDE)
    images = TaskImages(wrong, np.arange(8), np.zeros(8, np.int64))
    feed = DaliFeed(images, images, Stream(1, 2, 8, 4, 3), {"A": torch.zeros(SIDE, SIDE, 3)}, **LOOK)
    with pytest.raises(InputError, match=r"in train-0000.tar: .*33 x 33"):
        feed.train(0)


def test_without_dali_a_jpeg_store_is_refused_in_a_sentence(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    assert not dali_feed.has_dali()
    with pytest.raises(InputError, match=r"DALI, which is not installed: pip install nvidia-dali-cuda130 .*raw store"):
        feeds_of(store)


def test_nothing_of_dali_is_loaded_before_it_is_used() -> None:
    script = "import sys; from fasttransfer.training import grid; print('nvidia.dali' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_loss_that_is_stated(shared: Path) -> None:
    """A study sees nearly the same full-size images on a jpeg store and on a raw store."""
    source = shared / "data/ilsvrc12-samples.tar"
    raw, jpeg = (
        prepare(source, size=256, cache=cache_folder(), kind=kind, log=lambda text: None) for kind in ("raw", "jpeg")
    )
    rows = np.arange(len(raw.train))
    stream, zero = Stream(1, 2, len(rows), 50, 256 - 227), {"A": torch.zeros(256, 256, 3)}
    look = LOOK | {"crop": 227, "scale": 1.0}
    feeds: list[Feed] = []
    for kind, part in ((DaliFeed, jpeg.train), (MemoryFeed, raw.train)):
        images = TaskImages(part, rows, part.labels)
        feeds.append(kind(images, images, stream, zero, **look))
    counts = torch.zeros(256, dtype=torch.int64)
    for step in range(len(rows) // 50):
        found, expected = (feed.train(step) for feed in feeds)
        assert torch.equal(found.ids, expected.ids)
        difference = (found.images["A"] - expected.images["A"]).abs().to(torch.int64)
        counts += torch.bincount(difference.flatten(), minlength=256)
    mean = float((counts * torch.arange(256)).sum() / counts.sum())
    assert 2.0 < mean < 2.2
    assert counts[28:].sum() < counts.sum() / 1000
    assert counts[195:].sum() == 0
