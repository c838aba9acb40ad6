"""The commands of `fasttransfer`, and the exit codes and messages that they share.

Each command is a dataclass in a module of this package; its docstring and its fields' docstrings are its manual page.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import tyro

from fasttransfer.cli.advise import Advise
from fasttransfer.cli.base import Base
from fasttransfer.cli.bench import Bench
from fasttransfer.cli.cache import Cache
from fasttransfer.cli.compare import Compare
from fasttransfer.cli.data import Data
from fasttransfer.cli.grid import Grid
from fasttransfer.cli.info import Info
from fasttransfer.cli.networks import Networks
from fasttransfer.cli.probe import Probe
from fasttransfer.cli.report import Report
from fasttransfer.cli.splits import Splits
from fasttransfer.core.console import make_console
from fasttransfer.core.errors import InputError
from fasttransfer.core.files import access_errors
from fasttransfer.core.text import printable

Commands = Grid | Base | Report | Advise | Compare | Probe | Networks | Splits | Data | Cache | Bench | Info

_RENAMED = {"--bad-pictures": "--bad-images"}  # old names of options, which scripts and written commands still use


def run_command(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code, see `fasttransfer.cli.main`."""
    try:
        with access_errors():
            return int(_parse([_rename_option(word) for word in arguments]).run(make_console()))
    except InputError as error:
        print(f"fasttransfer: {printable(str(error))}", file=sys.stderr)
        return 2
    except SystemExit as ended:  # the parser's, which has printed a manual page or what is wrong
        return int(ended.code or 0)


def _rename_option(word: str) -> str:
    option, equals, value = word.partition("=")
    return f"{_RENAMED.get(option, option)}{equals}{value}"


def _parse(arguments: Sequence[str]) -> Any:
    return tyro.cli(
        Commands,
        prog="fasttransfer",
        description="How transferable is each layer of a network? The study of Yosinski et al. 2014 at today's speed.",
        args=list(arguments),
        config=(
            tyro.conf.DisallowNone,
            tyro.conf.OmitArgPrefixes,
            tyro.conf.OmitSubcommandPrefixes,
            tyro.conf.FlagCreatePairsOff,
            tyro.conf.PositionalMetavarFromFieldName,
        ),
    )
