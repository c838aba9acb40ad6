"""The look that all tables for the terminal share."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text


def grid(
    left: Sequence[str], right: Sequence[str], *, padding: tuple[int, int, int, int] = (0, 1, 0, 0), edge: bool = False
) -> Table:
    """Return a table without rows, its columns headed by `left` and `right` and aligned to that side.

    `padding` is around each cell: above, right, below, left; `edge`: at the outer sides of the table as well.
    """
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=padding, pad_edge=edge, header_style="bold")
    for heading in left:
        table.add_column(Text(heading), no_wrap=True)  # Text, for "[1]" would be read as a style
    for heading in right:
        table.add_column(Text(heading), justify="right", no_wrap=True)
    return table
