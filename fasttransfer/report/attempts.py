"""Figures that fail alone: a report is written without those that cannot be drawn, and their errors come after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

Drawn = TypeVar("Drawn")

_errors: ContextVar[list[Exception] | None] = ContextVar("_errors", default=None)


@contextmanager
def raise_errors_last() -> Iterator[None]:
    """Have the errors of `attempt` inside the block raised together at its end.

    Raises:
        ExceptionGroup: figures could not be drawn.
    """
    errors: list[Exception] = []
    before = _errors.set(errors)
    try:
        yield
    finally:
        _errors.reset(before)
    if errors:
        raise ExceptionGroup(
            "figures cannot be drawn; all else is written, and the page says which are missing", errors
        )


def attempt(draw: Callable[[], Drawn], otherwise: Callable[[Exception], Drawn]) -> Drawn:
    """Return what `draw` returns, or what `otherwise` makes of its error, which `raise_errors_last` raises later.

    Outside of such a block the error is raised at once.
    """
    try:
        return draw()
    except Exception as error:
        errors = _errors.get()
        if errors is None:
            raise
        errors.append(error)
        return otherwise(error)
