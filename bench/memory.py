"""What memory a prepare and a feed take above the libraries: in a process of its own, on more than they may hold.

    python -m fasttransfer.bench.memory FOLDER

Counted is what the process holds for itself (RssAnon); pages of memory-mapped files are the system's to take back. A
thread reads it every few milliseconds. Where the count starts, everything has been done once with few images.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from fasttransfer.bench import data
from fasttransfer.pipelines.dali_feed import has_dali
from fasttransfer.pipelines.layouts import list_images
from fasttransfer.pipelines.prepare import prepare_into
from fasttransfer.pipelines.store import Kind, Store

EVERY = 0.005  # seconds


def measure(folder: Path) -> dict[str, dict[str, int]]:
    """Bytes at the most, for each kind of store: of the prepare and of an epoch; and what the store takes on the disk.

    `folder` has the images, `many` and `few`, each for `list_images`; stores are put beside them.
    """
    command = [sys.executable, "-m", __name__, str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, dict[str, int]] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(folder: Path) -> None:
    """Prints what `measure` returns."""
    kinds: tuple[Kind, ...] = ("raw", "jpeg") if has_dali() else ("raw",)
    for kind in kinds:
        _epoch(_prepare(folder, "few", kind), kind)
    gc.collect()
    before = held()
    found = {}
    for kind in kinds:
        with watched() as prepare:
            store = _prepare(folder, "many", kind)
        with watched() as feed:
            _epoch(store, kind)
        disk = sum(path.stat().st_size for path in store.folder.iterdir())
        found[kind] = {"prepare": prepare[0] - before, "feed": feed[0] - before, "store": disk}
    print(json.dumps(found))


def held() -> int:
    """Bytes of this process that are no file's."""
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("RssAnon:"))
    return int(line.split()[1]) * 1024


def _prepare(folder: Path, images: str, kind: Kind) -> Store:
    listing = list_images(folder / images)
    return prepare_into(listing, folder / f"{images}-{kind}", size=data.SIDE, kind=kind, log=lambda text: None)


def _epoch(store: Store, kind: Kind) -> None:
    step = data.training(store, kind, threads=torch.get_num_threads(), device=torch.device("cpu"))
    for i in range(-(-len(store.train) // data.BATCH)):
        step(i)


@contextmanager
def watched() -> Iterator[list[int]]:
    """Puts the most that was held into the list."""
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
    main(Path(sys.argv[1]))
