"""The console that commands print to, and the printing of a sentence on it."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from fasttransfer.core.text import printable

_LEAST_WIDTH = 20  # columns; with fewer, such as COLUMNS=0, rich cuts everything off


def make_console() -> Console:
    """Return a console that prints text as it is: no markup, emoji or highlighting, for names may look like either."""
    console = Console(highlight=False, markup=False, emoji=False)
    if console.width < _LEAST_WIDTH:
        console.width = 80
    return console


def print_line(console: Console, text: str) -> None:
    """Print a sentence on a line of its own, which the terminal wraps."""
    console.print(Text(printable(text)), soft_wrap=True)
