"""Printing of sentences."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from fasttransfer.core.progress import Log


def printer(console: Console) -> Log:
    """Return a function that prints a sentence on a line of its own."""
    return lambda text: console.print(Text(text), soft_wrap=True)
