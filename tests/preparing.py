"""Another process that prepares, and stops where a test wants it to: for kills, interrupts and two at once.

Processes are forked from one that has imported all there is to import, which otherwise takes longer than the tests.
"""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

from fasttransfer.pipelines import shard_writer
from fasttransfer.pipelines.prepare import prepare
from fasttransfer.pipelines.store import Kind, shard_name

SIZE = 8
SHARD_BYTES = {"raw": 20 * SIZE * SIZE * 3, "jpeg": 20 * 2048}  # 20 images

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["fasttransfer.pipelines.prepare"])


class Preparing:
    """A process that prepares `source` into `cache`, with shards of `SHARD_BYTES`.

    It stops once the first image is in the shard called `hold` and all shards before are on disk, says "holding", and
    goes on when it is told to.
    """

    def __init__(self, source: Path, cache: Path, kind: Kind = "raw", hold: str = "") -> None:
        self._connection, theirs = _context.Pipe()
        self.process = _context.Process(target=_work, args=(theirs, source, cache, kind, hold))
        self.process.start()
        theirs.close()

    def wait_for(self, start: str) -> None:
        """Returns when it has said something that begins so."""
        while not self._connection.recv().startswith(start):
            pass

    def go_on(self) -> None:
        """Ends "holding"."""
        self._connection.send(None)

    def rest(self) -> list[str]:
        """Everything more that it says until it ends."""
        said = []
        try:
            while True:
                said.append(self._connection.recv())
        except EOFError:
            self.process.join()
            return said

    def kill(self) -> None:
        """SIGKILL; returns when it is dead."""
        self.process.kill()
        self.process.join()


@contextmanager
def preparing(source: Path, cache: Path, kind: Kind = "raw", hold: str = "") -> Iterator[Preparing]:
    """A `Preparing` that is killed in the end, if it is not done."""
    other = Preparing(source, cache, kind, hold)
    try:
        yield other
    finally:
        other.kill()


@contextmanager
def held(source: Path, cache: Path, shard: str, kind: Kind = "raw") -> Iterator[Preparing]:
    """Within, another process has stopped in the middle of `shard`; afterwards it has been killed."""
    with preparing(source, cache, kind, shard) as other:
        other.wait_for("holding")
        yield other


def _work(connection: Connection, source: Path, cache: Path, kind: Kind, hold: str) -> None:
    add = shard_writer.PartWriter.add

    def add_and_hold(self: shard_writer.PartWriter, image: bytes, label: int) -> bool:
        begins = self._shard is None
        full = add(self, image, label)
        if begins and shard_name(self._part, self._next, kind) == hold:
            self._flusher.wait()
            connection.send("holding")
            while not connection.poll(0.05):  # recv() alone sleeps through a signal that arrives just before it does
                pass
            connection.recv()
        return full

    shard_writer.SHARD_BYTES = SHARD_BYTES[kind]
    shard_writer.PartWriter.add = add_and_hold  # type: ignore[method-assign, assignment]
    try:
        store = prepare(source, size=SIZE, cache=cache, kind=kind, bad_images="skip", log=connection.send)
        connection.send(f"digest {store.digest}")
    except BaseException:
        connection.send(traceback.format_exc())
