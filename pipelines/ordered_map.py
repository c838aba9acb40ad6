"""A map over threads whose results come in order, with a bounded number of them waiting."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


def map_in_order(
    work: Callable[[Task], Result], tasks: Iterable[Task], threads: int
) -> Generator[tuple[Task, Result], None, None]:
    """Yield each task with its result, in order; at most two tasks per thread run ahead of the caller.

    Closing the generator early waits for the running tasks and drops the others.
    """
    ahead: deque[tuple[Task, Future[Result]]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix=getattr(work, "__name__", "work"))
    try:
        for task in tasks:
            ahead.append((task, pool.submit(work, task)))
            if len(ahead) > 2 * threads:
                first, result = ahead.popleft()
                yield first, result.result()
        while ahead:
            first, result = ahead.popleft()
            yield first, result.result()
    finally:
        pool.shutdown(cancel_futures=True)
