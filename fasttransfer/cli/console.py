"""Printing of sentences and tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rich.console import Console
from rich.text import Text

from fasttransfer.core.progress import Log
from fasttransfer.core.tables import plain_table


def printer(console: Console) -> Log:
    """Return a function that prints a sentence on a line of its own."""
    return lambda text: console.print(Text(text), soft_wrap=True)


def print_facts(console: Console, facts: Mapping[str, str] | Iterable[tuple[str, str]]) -> None:
    """Print a line per fact: its name, and its value, which is folded where it is long."""
    rows = plain_table("", "")
    for name, value in facts.items() if isinstance(facts, Mapping) else facts:
        rows.add_row(name, Text(value, overflow="fold"))
    console.print(rows)
