"""A thread that makes batches ahead changes nothing but when they are made, and leaves nothing behind."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from waiting import PATIENCE

from fasttransfer.pipelines.prefetched_feed import PrefetchedFeed
from fasttransfer.pipelines.streams import Batch


class Counting:
    """A feed whose batches hold their step; step 13 and every validation batch after the third fail."""

    def __init__(self) -> None:
        self.requested: list[int] = []
        self.threads: set[str] = set()
        self.closed = False
        self.made = threading.Semaphore(0)

    def train(self, step: int) -> Batch:
        self.requested.append(step)
        self.threads.add(threading.current_thread().name)
        if step == 13:
            raise ValueError("no such luck")
        self.made.release()
        return batch_of(step)

    def val(self) -> Iterator[Batch]:
        for number in range(3):
            self.requested.append(number)
            yield batch_of(-number)
        raise ValueError("the fourth is missing")

    def close(self) -> None:
        self.closed = True


def batch_of(step: int) -> Batch:
    number = torch.tensor([step])
    return Batch({"A": number.float()}, number, number, number)


def nothing() -> None:
    pass


@pytest.fixture
def counting() -> Counting:
    return Counting()


@pytest.fixture
def ahead(counting: Counting) -> Iterator[PrefetchedFeed]:
    feed = PrefetchedFeed(counting, nothing)
    yield feed
    feed.close()


def feed_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("feed")]


@settings(deadline=None, max_examples=30)
@given(steps=st.lists(st.integers(0, 8), max_size=12))
def test_any_step_at_any_time(steps: list[int]) -> None:
    feed = PrefetchedFeed(Counting(), nothing)
    try:
        assert [int(feed.train(step).ids) for step in steps] == steps
    finally:
        feed.close()


def test_the_next_step_is_made_while_this_one_is_used(counting: Counting, ahead: PrefetchedFeed) -> None:
    ahead.train(5)
    for _ in range(2):
        assert counting.made.acquire(timeout=PATIENCE)  # the second one was not requested yet
    assert counting.requested == [5, 6]
    ahead.train(6)
    assert counting.made.acquire(timeout=PATIENCE)
    assert counting.requested == [5, 6, 7]  # step 6 was made once
    assert counting.threads == {"feed_0"}


def test_validation_comes_whole_and_in_order_and_training_goes_on(ahead: PrefetchedFeed) -> None:
    ahead.train(0)
    batches = ahead.val()
    assert [int(next(batches).ids) for _ in range(3)] == [0, -1, -2]
    with pytest.raises(ValueError, match="the fourth is missing"):
        next(batches)
    assert int(ahead.train(1).ids) == 1


def test_an_error_is_raised_where_the_batch_is_requested_with_the_trace_of_the_thread(ahead: PrefetchedFeed) -> None:
    assert int(ahead.train(12).ids) == 12  # 13 has been tried, or will be
    with pytest.raises(ValueError, match="no such luck") as caught:
        ahead.train(13)
    assert 'raise ValueError("no such luck")' in "".join(traceback.format_exception(caught.value))
    assert int(ahead.train(14).ids) == 14


def test_an_error_of_a_wrong_guess_is_dropped(ahead: PrefetchedFeed) -> None:
    ahead.train(12)
    assert int(ahead.train(3).ids) == 3


def test_nothing_is_left_of_a_closed_feed(counting: Counting) -> None:
    feed = PrefetchedFeed(counting, nothing)
    feed.train(0)
    assert feed_threads()
    feed.close()
    assert counting.closed and not feed_threads()


def test_an_interrupt_while_waiting_for_a_batch_leaves_no_thread() -> None:
    class Interrupted(Counting):
        def train(self, step: int) -> Batch:
            raise KeyboardInterrupt

    feed = PrefetchedFeed(Interrupted(), nothing)
    with pytest.raises(KeyboardInterrupt):
        feed.train(0)
    feed.close()
    assert not feed_threads()


def test_the_thread_is_set_up_before_it_works(counting: Counting) -> None:
    """Threads of a parallel loop are counted per thread: a new one would take every core."""
    counts: list[int] = []

    class Looking(Counting):
        def train(self, step: int) -> Batch:
            counts.append(torch.get_num_threads())
            return super().train(step)

    feed = PrefetchedFeed(Looking(), lambda: torch.set_num_threads(1))
    feed.train(0)
    feed.close()
    assert set(counts) == {1}
