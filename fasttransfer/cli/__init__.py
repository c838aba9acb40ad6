"""The command line: `main` is the entry point of `fasttransfer`."""

from fasttransfer.cli.commands import main, run

__all__ = ["main", "run"]
