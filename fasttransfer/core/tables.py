"""The tables that commands print."""

from __future__ import annotations

from rich.table import Table


def plain_table(*headings: str) -> Table:
    """Columns without lines between them; without a head where all headings are empty. What is too long is folded."""
    table = Table(box=None, pad_edge=False, show_header=any(headings), header_style="bold")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table
