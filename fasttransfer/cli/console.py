"""Printing of sentences and tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

from rich.console import Console
from rich.text import Text

from fasttransfer.core.console import print_line
from fasttransfer.core.progress import Log
from fasttransfer.core.tables import plain_table
from fasttransfer.core.text import printable


def printer(console: Console) -> Log:
    """Return a function that prints a sentence on a line of its own."""
    return partial(print_line, console)


def print_table(console: Console, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table of strings; it has no head if all headings are empty."""
    table = plain_table(*headings)
    for row in rows:
        table.add_row(*(Text(printable(cell), overflow="fold") for cell in row))
    console.print(table)


def print_facts(console: Console, facts: Iterable[tuple[str, str]]) -> None:
    """Print a line per fact: its name and its value."""
    print_table(console, ("", ""), facts)
