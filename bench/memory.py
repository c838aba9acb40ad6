"""The memory that `prepare` and a feed take above the libraries, with more images than they may hold.

    python -m bench.memory --images 22000 --data ilsvrc12-samples.tar

The count is the process's own memory (RssAnon), read every few milliseconds; the system can take back the pages of
memory-mapped files. It starts after everything has run once with few images. Writes bench/results/memory.json.
"""

from __future__ import annotations

import argparse
import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from bench.studies import write_result
from fasttransfer.bench import feed
from fasttransfer.pipelines.dali_feed import has_dali
from fasttransfer.pipelines.layouts import list_images
from fasttransfer.pipelines.prepare import prepare_into
from fasttransfer.pipelines.store import Kind, Store

EVERY = 0.005  # seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=22_000)
    parser.add_argument("--data", type=Path, help="images; by default some are drawn")
    chosen = parser.parse_args()
    with feed.scratch_folder() as folder:
        feed.lay_out(chosen.data, folder / "many", chosen.images)
        feed.lay_out(chosen.data, folder / "few", feed.BATCH)
        found = measure(folder)
    write_result("memory", f"python -m bench.memory --images {chosen.images}", bytes=found)


def measure(folder: Path) -> dict[str, dict[str, int]]:
    """Return the most bytes of `prepare` and of an epoch, and the bytes of the store on disk, for each kind of store.

    Args:
        folder: holds the images, `many` and `few`; stores are put beside them.
    """
    kinds: tuple[Kind, ...] = ("raw", "jpeg") if has_dali() else ("raw",)
    for kind in kinds:
        _epoch(_prepare(folder, "few", kind), kind)
    gc.collect()
    before = held()
    found: dict[str, dict[str, int]] = {}
    for kind in kinds:
        with watched() as prepare:
            store = _prepare(folder, "many", kind)
        with watched() as epoch:
            _epoch(store, kind)
        disk = sum(path.stat().st_size for path in store.folder.iterdir())
        found[kind] = {"prepare": prepare[0] - before, "feed": epoch[0] - before, "store": disk}
    return found


def held() -> int:
    """Return the bytes of this process that belong to no file."""
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("RssAnon:"))
    return int(line.split()[1]) * 1024


def _prepare(folder: Path, images: str, kind: Kind) -> Store:
    listing = list_images(folder / images)
    return prepare_into(listing, folder / f"{images}-{kind}", size=feed.SIDE, kind=kind, log=lambda text: None)


def _epoch(store: Store, kind: Kind) -> None:
    step = feed.training(store, kind, threads=torch.get_num_threads(), device=torch.device("cpu"))
    for i in range(-(-len(store.train) // feed.BATCH)):
        step(i)


@contextmanager
def watched() -> Iterator[list[int]]:
    """Yield a list whose element is the most that the process held."""
    over, most = threading.Event(), [held()]

    def watch() -> None:
        while not over.wait(EVERY):
            most[0] = max(most[0], held())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        over.set()
        thread.join()


if __name__ == "__main__":
    main()
