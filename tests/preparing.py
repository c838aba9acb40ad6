"""Sources to prepare, and another process that prepares and stops where a test wants it to."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any

import forks
import pytest
from sources import by_class, write

from fasttransfer.core.errors import InputError
from fasttransfer.pipelines import shard_writer, write_store
from fasttransfer.pipelines.prepare import prepare
from fasttransfer.pipelines.store import Kind, expected_bytes

CLASSES = ("cat", "dog")
SIZE = 8
SHARD_BYTES = {kind: 20 * expected_bytes(kind, 1, SIZE) for kind in ("raw", "jpeg")}  # 20 images of the list


def quiet(text: str) -> None:
    """Log nothing."""


def source_of(folder: Path, count: int = 12) -> Path:
    """Write a source with `count` training and two validation images per class."""
    return write(folder, by_class("train/", CLASSES, count) | by_class("val/", CLASSES, 2))


def refusal(source: Path, cache: Path, **choices: object) -> str:
    """Return the message with which prepare refuses `source`."""
    with pytest.raises(InputError) as caught:
        prepare(source, size=8, cache=cache, log=quiet, **choices)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    return message


def visible(folder: Path) -> list[str]:
    """Return the names in a folder of stores, without locks."""
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


both_kinds = pytest.mark.parametrize("kind", ["raw", "jpeg"])


def same_files(one: Path, other: Path) -> None:
    """Check that two folders hold the same, byte for byte."""
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in other.iterdir())
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def with_bad_ones(folder: Path) -> Path:
    """Write 116 good training images, and bad ones before, between and after them."""
    bad = ("cat/00", "cat/17", "cat/39", "dog/1", "dog/20", "dog/99", "dog/999")
    return write(source_of(folder, 60), {f"train/{name}.jpg": b"no image" for name in bad} | {"val/cat/99.jpg": b""})


class Preparing:
    """A process that prepares `source` into `cache`, with shards of `SHARD_BYTES`.

    It stops once the first image is in the shard called `hold` and all shards before are complete, sends "holding", and
    continues after `go_on`.
    """

    def __init__(self, source: Path, cache: Path, kind: Kind = "raw", hold: str = "") -> None:
        self._connection, theirs = forks.context.Pipe()
        self.process = forks.context.Process(target=_work, args=(theirs, source, cache, kind, hold))
        self.process.start()
        theirs.close()

    def wait_for(self, start: str) -> None:
        """Return when it has sent a line that begins with `start`."""
        while not self._connection.recv().startswith(start):
            pass

    def go_on(self) -> None:
        """Let a process that is "holding" continue."""
        self._connection.send(None)

    def rest(self) -> list[str]:
        """Return all lines that it still sends until it ends."""
        lines = []
        try:
            while True:
                lines.append(self._connection.recv())
        except EOFError:
            self.process.join()
            return lines

    def kill(self) -> None:
        """Send SIGKILL; return when it is dead."""
        self.process.kill()
        self.process.join()


@contextmanager
def preparing(source: Path, cache: Path, kind: Kind = "raw", hold: str = "") -> Iterator[Preparing]:
    """Yield a `Preparing`, which is killed in the end if it still runs."""
    other = Preparing(source, cache, kind, hold)
    try:
        yield other
    finally:
        other.kill()


@contextmanager
def held(source: Path, cache: Path, shard: str, kind: Kind = "raw") -> Iterator[Preparing]:
    """Yield a process that has stopped in the middle of `shard`; afterwards it is killed."""
    with preparing(source, cache, kind, shard) as other:
        other.wait_for("holding")
        yield other


def _work(connection: Connection, source: Path, cache: Path, kind: Kind, hold: str) -> None:
    write, written = write_store.write_images, list[Path]()

    def hold_after_first(images: Iterable[Any]) -> Iterator[Any]:
        for number, image in enumerate(images):
            yield image
            if number == 0:
                while not all(Path(f"{path}{shard_writer.DONE}").exists() for path in written):
                    time.sleep(0.01)
                connection.send("holding")
                while not connection.poll(0.05):  # recv() alone sleeps through a signal that arrives just before it
                    pass
                connection.recv()

    def write_and_hold(file: IO[bytes], kind: Kind, images: Iterable[Any], **choices: Any) -> list[int]:
        path = Path(file.name)
        sizes = write(file, kind, hold_after_first(images) if path.name == hold else images, **choices)
        written.append(path)
        return sizes

    shard_writer.SHARD_BYTES = SHARD_BYTES[kind]
    write_store.write_images = write_and_hold
    try:
        store = prepare(source, size=SIZE, cache=cache, kind=kind, bad_images="skip", log=connection.send)
        connection.send(f"digest {store.digest}")
    except BaseException:
        connection.send(traceback.format_exc())
