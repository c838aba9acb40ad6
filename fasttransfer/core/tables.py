"""The tables that commands print."""

from __future__ import annotations

from rich.table import Table


def plain_table(*headings: str) -> Table:
    """Return a table without lines, and without a head if all headings are empty, that folds long cells."""
    table = Table(box=None, pad_edge=False, show_header=any(headings), header_style="bold")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table
