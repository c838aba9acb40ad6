"""Batches are functions of the step: any step can be requested, and every image comes once per epoch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from studies import MANMADE, NATURAL, draw_images

from fasttransfer import ops
from fasttransfer.core.files import cache_folder
from fasttransfer.pipelines.mean_images import compute_mean_image
from fasttransfer.pipelines.memory_feed import MemoryFeed
from fasttransfer.pipelines.prepare import prepare
from fasttransfer.pipelines.store import Store
from fasttransfer.pipelines.streams import Stream, select_task_images


@pytest.fixture
def store(tmp_path: Path) -> Store:
    source = draw_images(tmp_path / "images", NATURAL + MANMADE)
    return prepare(source, size=32, cache=cache_folder(), log=lambda _: None)


@settings(deadline=None, max_examples=40)
@given(images=st.integers(1, 60), batch=st.integers(1, 80), steps=st.integers(1, 12))
def test_every_epoch_shows_every_image_once(images: int, batch: int, steps: int) -> None:
    stream = Stream(1, 2, images, batch, 6)
    ids = torch.cat([stream.views(step).ids for step in range(steps)])
    assert len(ids) == steps * batch
    for epoch in range(len(ids) // images):
        assert sorted(ids[epoch * images : (epoch + 1) * images].tolist()) == list(range(images))


@settings(deadline=None, max_examples=20)
@given(step=st.integers(0, 300))
def test_a_step_is_the_same_whenever_it_is_requested(step: int) -> None:
    def views(step: int) -> list[list[int]]:
        return [t.tolist() for t in Stream(1, 2, 50, 16, 6).views(step)]

    expected = views(step)
    for other in (step + 1, 0, step // 2):
        views(other)
    assert views(step) == expected


def test_a_view_belongs_to_the_image_and_the_epoch_not_to_the_batch() -> None:
    by_batch: dict[int, dict[tuple[int, int], tuple[int, int, bool]]] = {}
    for batch in (4, 9):
        found = by_batch[batch] = {}
        stream, position = Stream(1, 2, 20, batch, 6), 0
        while position < 60:
            for id, top, left, mirror, _ in zip(*(t.tolist() for t in stream.views(position // batch)), strict=True):
                found[position // 20, id] = top, left, mirror
                position += 1
    common = by_batch[4].keys() & by_batch[9].keys()
    assert len(common) >= 60
    assert all(by_batch[4][k] == by_batch[9][k] for k in common)


def test_views_cover_the_margin_evenly_and_mirror_half() -> None:
    views = Stream(1, 2, 7000, 7000, 6).views(0)
    for offsets in (views.top, views.left):
        counts = torch.bincount(offsets, minlength=7)
        assert len(counts) == 7
        assert (counts - 1000).abs().max() < 150
    assert 3300 < int(views.mirror.sum()) < 3700
    assert abs(np.corrcoef(views.top, views.left)[0, 1]) < 0.05


def test_task_images_are_labelled_by_their_place_in_the_task(store: Store) -> None:
    classes = (MANMADE[1], NATURAL[0])
    found = select_task_images(store, store.train, classes)
    assert len(found) == 20
    assert [store.classes[store.train.labels[row]] for row in found.rows] == [classes[i] for i in found.labels]
    assert select_task_images(store, store.train, classes, per_class=3).labels.tolist() == [1, 1, 1, 0, 0, 0]
    first = select_task_images(store, store.train, classes, per_class=3)
    assert set(first.rows) < set(found.rows)
    assert first.rows.tolist() == sorted(first.rows)


def test_a_batch_carries_the_same_views_under_each_mean(store: Store) -> None:
    train = select_task_images(store, store.train, NATURAL)
    val = select_task_images(store, store.val, NATURAL)
    means = {"A": torch.from_numpy(compute_mean_image(train)), "B": torch.zeros(32, 32, 3)}
    stream = Stream(1, 2, len(train), 8, 3)
    feed = MemoryFeed(train, val, stream, means, crop=29, scale=1.0, device=torch.device("cpu"))
    batch, views = feed.train(2), stream.views(2)
    assert batch.labels.tolist() == train.labels[batch.ids].tolist()
    for i in range(8):
        pixels = store.train.gather(train.rows[views.ids[i : i + 1].numpy()])[0]
        top, left = int(views.top[i]), int(views.left[i])
        plain = torch.from_numpy(pixels[top : top + 29, left : left + 29].astype(np.float32))
        mean = means["A"][top : top + 29, left : left + 29]
        if views.mirror[i]:
            plain, mean = plain.flip(1), mean.flip(1)
        assert torch.equal(batch.images["B"][i], plain.permute(2, 0, 1))
        assert torch.equal(batch.images["A"][i], (plain - mean).permute(2, 0, 1))


def test_validation_is_every_image_once_from_the_centre(store: Store) -> None:
    train, val = (select_task_images(store, part, MANMADE) for part in (store.train, store.val))
    stream = Stream(1, 2, len(train), 4, 3)
    feed = MemoryFeed(train, val, stream, {"B": torch.zeros(32, 32, 3)}, crop=29, scale=1.0, device=torch.device("cpu"))
    batches = list(feed.val())
    assert [len(b.labels) for b in batches] == [4, 4, 4, 3]
    found = torch.cat([b.images["B"] for b in batches])
    plain = torch.from_numpy(store.val.gather(val.rows)[:, 1:30, 1:30].astype(np.float32)).permute(0, 3, 1, 2)
    assert torch.equal(found, plain)
    assert torch.cat([b.labels for b in batches]).tolist() == val.labels.tolist()


@pytest.mark.filterwarnings("error")
def test_shards_are_read_where_they_lie(store: Store) -> None:
    (whole,) = store.train.shards
    assert not whole.flags.writeable
    cut = replace(store.train, shards=(whole[:9], whole[9:10], whole[10:]), starts=np.array([0, 9, 10]))
    batches = []
    for part in (store.train, cut):
        train, val = select_task_images(store, part, NATURAL + MANMADE), select_task_images(store, store.val, NATURAL)
        stream, means = Stream(1, 2, len(train), 30, 3), {"A": torch.from_numpy(compute_mean_image(train))}
        feed = MemoryFeed(train, val, stream, means, crop=29, scale=0.5, device=torch.device("cpu"))
        batches.append(feed.train(1))
    assert len(set(batches[0].ids.tolist()) & set(range(9))) > 3
    assert torch.equal(batches[0].images["A"], batches[1].images["A"])


def test_images_come_as_the_first_stage_wants_them(store: Store) -> None:
    train, val = (select_task_images(store, part, NATURAL) for part in (store.train, store.val))
    stream, mean = Stream(1, 2, len(train), 8, 3), torch.from_numpy(compute_mean_image(train))
    wanted = {"block": 4, "side": 9, "dtype": torch.bfloat16}
    feed = MemoryFeed(train, val, stream, {"A": mean}, crop=29, scale=0.5, device=torch.device("cpu"), **wanted)
    batch, views = feed.train(3), stream.views(3)
    pixels = torch.from_numpy(store.train.gather(train.rows[views.ids.numpy()]))
    expected = ops.augment([pixels], torch.arange(8), mean, *views[1:4], crop=29, scale=0.5, **wanted)
    assert expected.shape == (8, 48, 9, 9)
    assert torch.equal(batch.images["A"], expected)
    assert {b.images["A"].shape[1:] for b in feed.val()} == {(48, 9, 9)}
