"""`fasttransfer info`: print versions, device, and what is built and loaded."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from fasttransfer.core.tables import plain_table


@dataclass(frozen=True)
class Info:
    """Print versions, device, and what is built and loaded: for bug reports.

    For example:

        fasttransfer info
    """

    def run(self, console: Console) -> int:
        from fasttransfer.study import environment

        rows = plain_table("", "")
        for name, value in environment.describe_environment().items():
            rows.add_row(name, Text(value, overflow="fold"))
        console.print(rows)
        return 0
