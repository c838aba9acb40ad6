"""The choice of feed and store depends on sizes alone, which these tests vary."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from studies import MANMADE, NATURAL, draw_images

from fasttransfer.core import machine
from fasttransfer.core.errors import InputError
from fasttransfer.core.files import cache_folder
from fasttransfer.pipelines import choose_feed
from fasttransfer.pipelines.dali_feed import DaliFeed
from fasttransfer.pipelines.memory_feed import MemoryFeed
from fasttransfer.pipelines.prefetched_feed import PrefetchedFeed
from fasttransfer.pipelines.prepare import prepare
from fasttransfer.pipelines.store import Kind, Store
from fasttransfer.pipelines.streams import Stream, select_task_images

GB = 10**9
CPU = torch.device("cpu")


@pytest.fixture
def stores(tmp_path: Path) -> dict[Kind, Store]:
    source = draw_images(tmp_path / "images", NATURAL + MANMADE)
    kinds: tuple[Kind, ...] = ("raw", "jpeg")
    return {kind: prepare(source, size=32, cache=cache_folder(), kind=kind, log=lambda text: None) for kind in kinds}


@pytest.mark.parametrize(
    ("images", "free", "resident", "ahead"),
    [
        (1, 100, True, False),
        (75, 100, True, False),
        (76, 100, False, True),
        (1, 0, False, True),
        (1, None, False, True),
    ],
)
def test_a_gpu_holds_what_leaves_room_to_train(images: int, free: int | None, resident: bool, ahead: bool) -> None:
    chosen = choose_feed.choose_feed("raw", images * GB, "cuda", None if free is None else free * GB)
    assert (chosen.resident, chosen.ahead) == (resident, ahead)
    assert ("GPU's memory" in chosen.about) is resident and ("pinned" in chosen.about) is not resident


@pytest.mark.parametrize(
    ("images", "free", "ahead"), [(1, 24, False), (12, 24, False), (13, 24, True), (9, None, False)]
)
@pytest.mark.parametrize(("kind", "feed"), [("raw", "memory"), ("jpeg", "dali")])
def test_a_thread_reads_ahead_from_a_slow_disk(
    kind: Kind, feed: str, images: int, free: int | None, ahead: bool
) -> None:
    chosen = choose_feed.choose_feed(kind, images * GB, "cpu", None if free is None else free * GB)
    assert (chosen.resident, chosen.ahead) == (False, ahead) and chosen.about.startswith(feed)
    assert ("from disk" in chosen.about) is ahead


def test_the_choice_names_the_sizes_that_it_rests_on() -> None:
    assert choose_feed.choose_feed("raw", 127 * GB, "cuda", 140 * GB).about == (
        "memory, through pinned buffers, one batch ahead (127.0 GB, 140.0 GB free)"
    )
    assert choose_feed.choose_feed("jpeg", GB, "cuda", 100 * GB).about == "dali, decoded on the GPU from the page cache"


@pytest.mark.parametrize(
    ("free", "have", "dali", "kind"),
    [
        (300, (), True, "raw"),
        (280, (), True, "raw"),  # 252 GB are needed, a tenth stays free
        (279, (), True, "jpeg"),
        (10, ("raw",), True, "raw"),
        (10, ("jpeg",), True, "jpeg"),
        (300, ("jpeg",), True, "jpeg"),
        (10, (), False, "raw"),  # which prepare refuses for want of room: there is nothing to read the other kind
        (10, ("jpeg",), False, "raw"),
    ],
)
def test_a_source_becomes_raw_where_the_disk_has_room(
    free: int, have: tuple[Kind, ...], dali: bool, kind: Kind
) -> None:
    chosen, why = choose_feed.choose_kind(1_281_167, 256, free * GB, have, dali=dali)
    assert chosen == kind and why


def test_each_store_gets_the_feed_that_reads_it(stores: dict[Kind, Store], monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, feed, free, ahead in (
        ("raw", MemoryFeed, 10 * GB, False),
        ("jpeg", DaliFeed, 10 * GB, False),
        ("raw", MemoryFeed, 1, True),
    ):
        monkeypatch.setattr(machine, "free_memory", lambda free=free: free)
        train, val = (select_task_images(stores[kind], p, NATURAL) for p in (stores[kind].train, stores[kind].val))
        stream, mean = Stream(1, 2, len(train), 8, 3), {"A": torch.zeros(32, 32, 3)}
        opened = choose_feed.open_feed(train, val, stream, mean, device=CPU, threads=1, crop=29, scale=1.0)
        assert isinstance(opened, PrefetchedFeed) is ahead
        assert isinstance(opened._feed if isinstance(opened, PrefetchedFeed) else opened, feed)
        assert opened.train(0).images["A"].shape == (8, 3, 29, 29)
        opened.close()


def test_bytes_of_stored_images(stores: dict[Kind, Store]) -> None:
    raw, jpeg = (select_task_images(stores[kind], stores[kind].train, NATURAL) for kind in ("raw", "jpeg"))
    assert choose_feed.stored_bytes(raw) == 30 * 32 * 32 * 3
    files = [stores["jpeg"].train.read(row) for row in jpeg.rows]
    assert choose_feed.stored_bytes(jpeg) == sum(map(len, files))


@pytest.mark.parametrize(("kind", "name", "other"), [("raw", "dali", "jpeg"), ("jpeg", "memory", "raw")])
def test_a_feed_that_cannot_read_the_store_is_refused(
    stores: dict[Kind, Store], kind: Kind, name: choose_feed.Name, other: str
) -> None:
    choose_feed.check_feed(stores[kind], None)
    choose_feed.check_feed(stores[kind], "memory" if kind == "raw" else "dali")
    with pytest.raises(InputError, match=f"--feed {name} reads {other} stores, this one is {kind}: .* --kind {other}"):
        choose_feed.check_feed(stores[kind], name)


def test_free_disk_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    assert choose_feed.free_disk(tmp_path / "not" / "there") > 0
