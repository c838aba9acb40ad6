"""Make the next batch in a thread while this one is trained on: for feeds that wait for a disk or for a copy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from fasttransfer.pipelines.streams import Batch, Feed


class PrefetchedFeed:
    """Another feed's batches, made one ahead, see `fasttransfer.pipelines.streams.Feed`.

    Step s + 1 usually follows training step s: its batch is made as soon as that of s is requested. Any other step may
    be requested as well; the batch that was made in vain is dropped, and so is its error. An error of the thread is
    raised where the batch is requested, with the stack trace of the thread.

    Args:
        feed: used by this feed's thread only.
        start: called once in the thread before anything else: torch's number of threads and its current device belong
            to a thread.
    """

    def __init__(self, feed: Feed, start: Callable[[], None]) -> None:
        self._feed = feed
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="feed", initializer=start)
        self._guess: tuple[int, Future[Batch]] | None = None

    def train(self, step: int) -> Batch:
        if self._guess is not None and self._guess[0] == step:
            batch = self._guess[1]
        else:
            if self._guess is not None:
                self._guess[1].cancel()
            batch = self._thread.submit(self._feed.train, step)
        self._guess = step + 1, self._thread.submit(self._feed.train, step + 1)
        return batch.result()

    def val(self) -> Iterator[Batch]:
        batches = self._feed.val()
        following = self._thread.submit(next, batches, None)
        while (batch := following.result()) is not None:
            following = self._thread.submit(next, batches, None)
            yield batch

    def close(self) -> None:
        """End the thread, after the batch that it is making, and close the feed."""
        self._thread.shutdown(cancel_futures=True)
        self._feed.close()
