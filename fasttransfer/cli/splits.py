"""`fasttransfer splits …`: lists, shows, exports and verifies the splits of classes into tasks A and B."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console

from fasttransfer.cli.console import print_table


@dataclass(frozen=True)
class SplitsList:
    """List the splits that need no file, with the number of classes in each task.

    For example:

        fasttransfer splits list
    """

    def run(self, console: Console) -> int:
        from fasttransfer.study import splits

        rows = (tuple(map(str, row)) for row in splits.list_splits())
        print_table(console, ("--split", "A", "B", "what it is"), rows)
        return 0


@dataclass(frozen=True)
class _Split:
    split: Annotated[str, tyro.conf.Positional]
    """natural-manmade, random:SEED or a TOML file."""
    data: str | None = None
    """builtin, a source of images or a prepared store; by default the 1000 ILSVRC12 classes."""

    def load(self) -> tuple[Any, dict[str, str]]:
        """Return the split, and the classes' words."""
        from fasttransfer.study import images, splits

        if self.data is None:
            words = splits.load_ilsvrc12_words()
            return splits.make_split(self.split, list(words)), words
        source = images.find_source(self.data)
        return splits.make_split(self.split, source.classes), source.words


@dataclass(frozen=True)
class SplitsShow(_Split):
    """Show the classes that a split puts into each task.

    For example:

        fasttransfer splits show random:0
    """

    def run(self, console: Console) -> int:
        from fasttransfer.study import splits

        rows = (tuple(map(str, row)) for row in splits.show(*self.load()))
        print_table(console, ("task", "label", "class", "words"), rows)
        return 0


@dataclass(frozen=True)
class SplitsExport(_Split):
    """Print a split as a TOML file that you can edit and pass to --split.

    For example:

        fasttransfer splits export natural-manmade --data my-images > mine.toml
    """

    validation_list: Literal["A", "B"] | None = None
    """Print the paper's list of this half instead: one line "<ILSVRC12 validation file> <new label>" per image."""

    def run(self, console: Console) -> int:
        from fasttransfer.study import splits

        split, words = self.load()
        if self.validation_list:
            text = splits.export_validation_list(split.tasks[self.validation_list])
        else:
            text = splits.export(split, words)
        sys.stdout.write(text)
        return 0


@dataclass(frozen=True)
class SplitsVerify:
    """Recompute the MD5s of the paper's ten halves and compare them with the published ones.

    For example:

        fasttransfer splits verify
    """

    def run(self, console: Console) -> int:
        from fasttransfer.study import splits

        checks = splits.verify()
        rows = ((*check, "same" if check[1] == check[2] else "DIFFERENT") for check in checks)
        print_table(console, ("half", "published", "found", ""), rows)
        return 0 if all(published == found for _, published, found in checks) else 1


@dataclass(frozen=True)
class Splits:
    """Look at, export and verify the splits of classes into tasks A and B."""

    command: (
        Annotated[SplitsList, tyro.conf.subcommand("list")]
        | Annotated[SplitsShow, tyro.conf.subcommand("show")]
        | Annotated[SplitsExport, tyro.conf.subcommand("export")]
        | Annotated[SplitsVerify, tyro.conf.subcommand("verify")]
    )

    def run(self, console: Console) -> int:
        return self.command.run(console)
