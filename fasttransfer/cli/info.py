"""`fasttransfer info`: prints versions, devices and the state of the native libraries."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console

from fasttransfer.cli.console import print_facts


@dataclass(frozen=True)
class Info:
    """Print versions, devices and the state of the native libraries, for bug reports.

    For example:

        fasttransfer info
    """

    def run(self, console: Console) -> int:
        from fasttransfer.study import environment

        print_facts(console, environment.describe_environment().items())
        return 0
