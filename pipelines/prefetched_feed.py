"""The next batch made in a thread while this one is trained on: for feeds that wait, for a disk or for a copy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from fasttransfer.pipelines.streams import Batch, Feed


class PrefetchedFeed:
    """Another feed's batches, made one ahead, see `fasttransfer.pipelines.streams.Feed`.

    After training step s comes step s + 1, most of the time: its batch is made as soon as that of s is asked for. Any
    other step may be asked for as well; what was made for nothing is dropped, its error with it. An error of the thread
    is raised where the batch is asked for, with the stack trace of the thread.

    Args:
        feed: asked by one thread only, this one's.
        start: called once in the thread before anything else: torch's number of threads and its current device are
            each thread's own.
    """

    def __init__(self, feed: Feed, start: Callable[[], None]) -> None:
        self._feed = feed
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="feed", initializer=start)
        self._guess: tuple[int, Future[Batch]] | None = None

    def train(self, step: int) -> Batch:
        """The batch of training step `step`, counted from 0."""
        if self._guess is not None and self._guess[0] == step:
            asked = self._guess[1]
        else:
            if self._guess is not None:
                self._guess[1].cancel()
            asked = self._thread.submit(self._feed.train, step)
        self._guess = step + 1, self._thread.submit(self._feed.train, step + 1)
        return asked.result()

    def val(self) -> Iterator[Batch]:
        """Every validation image once, in order, centre crops."""
        batches = self._feed.val()
        following = self._thread.submit(next, batches, None)
        while (batch := following.result()) is not None:
            following = self._thread.submit(next, batches, None)
            yield batch

    def close(self) -> None:
        """Ends the thread, after the batch that it is making, and closes the feed."""
        self._thread.shutdown(cancel_futures=True)
        self._feed.close()
