"""Feeds on a GPU: the same batches wherever images lie, and never overwritten while a kernel reads them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from studies import MANMADE, NATURAL, draw_images

from fasttransfer.core.files import cache_folder
from fasttransfer.pipelines import choose_feed
from fasttransfer.pipelines.dali_feed import DaliFeed, has_dali
from fasttransfer.pipelines.memory_feed import MemoryFeed
from fasttransfer.pipelines.prefetched_feed import PrefetchedFeed
from fasttransfer.pipelines.prepare import prepare
from fasttransfer.pipelines.store import Kind
from fasttransfer.pipelines.streams import Batch, Feed, Stream, select_task_images
from fasttransfer.training.cuda_graph import RecordedGraph

pytestmark = pytest.mark.gpu

SIDE, CROP, BATCH = 64, 60, 32
LOOK: dict[str, Any] = {"crop": CROP, "scale": 1.0, "block": 3, "side": 20, "dtype": torch.bfloat16}
STEPS = (0, 1, 2, 3, 9, 4, 5)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return draw_images(tmp_path / "images", NATURAL + MANMADE, train=20, side=80)


def feed_of(source: Path, kind: Kind, device: str, **more: Any) -> Feed:
    store = prepare(source, size=SIDE, cache=cache_folder(), kind=kind, log=lambda text: None)
    train, val = (select_task_images(store, part, NATURAL) for part in (store.train, store.val))
    stream = Stream(1, 2, len(train), BATCH, SIDE - CROP)
    means = {"A": torch.from_numpy(np.random.default_rng(0).random((SIDE, SIDE, 3), dtype=np.float32) * 255)}
    feed = {"raw": MemoryFeed, "jpeg": DaliFeed}[kind]
    return feed(train, val, stream, means, device=torch.device(device), **(LOOK | more))


def same(one: Batch, other: Batch) -> bool:
    return torch.equal(one.images["A"].cpu(), other.images["A"].cpu()) and torch.equal(
        one.labels.cpu(), other.labels.cpu()
    )


def keep_busy() -> None:
    """Queue work that keeps the GPU busy while the CPU runs ahead."""
    x = torch.ones(4096, 4096, device="cuda")
    for _ in range(20):
        x = x @ x * 1e-4


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("ahead", [True, False])
def test_the_same_batches_wherever_images_lie(images: Path, resident: bool, ahead: bool) -> None:
    plain = feed_of(images, "raw", "cpu")
    feed: Feed = feed_of(images, "raw", "cuda", resident=resident)
    if ahead:
        feed = PrefetchedFeed(feed, lambda: torch.cuda.set_device(0))
    found = []
    for step in STEPS:
        keep_busy()
        found.append(feed.train(step))
    assert all(same(batch, plain.train(step)) for step, batch in zip(STEPS, found, strict=True))
    assert all(same(*each) for each in zip(feed.val(), plain.val(), strict=True))
    feed.close()


@pytest.mark.skipif(not has_dali(), reason="DALI is not installed")
@pytest.mark.parametrize("hw_share", [None, 0.0, 1.0])
def test_images_that_the_gpu_decodes(images: Path, hw_share: float | None) -> None:
    plain = feed_of(images, "jpeg", "cpu", dtype=torch.float32)
    feed = feed_of(images, "jpeg", "cuda", dtype=torch.float32, hw_share=hw_share, threads=2)
    found = []
    for step in STEPS:
        keep_busy()
        found.append(feed.train(step))
    for step, batch in zip(STEPS, found, strict=True):
        expected = plain.train(step)
        difference = (batch.images["A"].cpu() - expected.images["A"]).abs()
        assert difference.mean() < 1 and difference.max() <= 16  # noise: the worst case for interpolated chroma
        assert torch.equal(batch.labels.cpu(), expected.labels)
        assert same(feed.train(step), batch)
    feed.close()


def test_a_step_is_recorded_while_a_thread_makes_batches(images: Path) -> None:
    feed = PrefetchedFeed(feed_of(images, "raw", "cuda"), lambda: torch.cuda.set_device(0))
    total = torch.zeros((), device="cuda")

    def add(batch: Any) -> None:
        total.add_(batch["A"].float().sum())

    step_of = RecordedGraph(add)
    expected = 0.0
    for step in range(12):
        batch = feed.train(step)
        expected += float(batch.images["A"].float().sum())
        step_of(batch.images)
    assert float(total) == pytest.approx(expected, rel=1e-4)
    feed.close()


def test_free_memory_of_a_gpu_is_measured() -> None:
    free = choose_feed.free_memory("raw", torch.device("cuda"))
    assert free is not None and 0 < free <= torch.cuda.get_device_properties(0).total_memory


@pytest.fixture(autouse=True)
def _settled() -> Iterator[None]:
    yield
    if torch.cuda.is_available():
        torch.cuda.synchronize()
