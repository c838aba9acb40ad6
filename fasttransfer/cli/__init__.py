"""The command line: `main` is the entry point of `fasttransfer`, `run` is one command of it.

Importing the commands takes seconds, so that is done inside both: an interruption meanwhile is one like any other.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from fasttransfer.cli.output import guard_output
from fasttransfer.core import interrupts

__all__ = ["main", "run"]

# Figures are drawn into files, with settings of their own: a backend of the user's, such as a notebook's that is not
# installed here, or a damaged file of settings must not prevent a report.
_PLAIN_MATPLOTLIB = {"MPLBACKEND": "agg", "MATPLOTLIBRC": os.devnull}


def main() -> None:
    """Run `fasttransfer` with the arguments of this process and exit with its code.

    0 is done, 1 done, but something is missing or not as it should be, 2 bad input, 128 and a signal's number an
    interruption: 130 for Ctrl-C, 143 for SIGTERM, 138 for SIGUSR1, 129 for SIGHUP. A bug keeps its stack trace.
    """
    interrupts.handle_signals()
    os.environ |= _PLAIN_MATPLOTLIB
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code."""
    interrupts.forget_signals()
    with guard_output() as output:
        try:
            from fasttransfer.cli.commands import run_command

            code = run_command(arguments)
        except KeyboardInterrupt:
            why = "interrupted: what is done is kept, the same command goes on from there"
            print(f"fasttransfer: {why}", file=sys.stderr)
            code = interrupts.exit_code()
    return 1 if output.is_lost and code == 0 else code
