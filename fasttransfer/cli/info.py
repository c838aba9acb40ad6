"""`fasttransfer info`: prints versions, devices and the state of the native libraries."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from fasttransfer.core.tables import plain_table


@dataclass(frozen=True)
class Info:
    """Print versions, devices and the state of the native libraries, for bug reports.

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
