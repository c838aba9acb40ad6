"""The command line; `main` is the entry point of `fasttransfer`."""

from fasttransfer.cli.main import main, run

__all__ = ["main", "run"]
