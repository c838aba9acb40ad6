"""`fasttransfer splits …`: lists, shows, exports and verifies the splits of classes into tasks A and B."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console

from fasttransfer.core.tables import plain_table


@dataclass(frozen=True)
class SplitsList:
    """List the splits that need no file, with the number of classes in each task.

    For example:

        fasttransfer splits list
    """

    def run(self, console: Console) -> int:
        from fasttransfer.study import splits

        rows = plain_table("--split", "A", "B", "what it is")
        for row in splits.list_splits():
            rows.add_row(*map(str, row))
        console.print(rows)
        return 0


@dataclass(frozen=True)
class SplitsShow:
    """Show the classes that a split puts into each task.

    For example:

        fasttransfer splits show random:0
    """

    split: Annotated[str, tyro.conf.Positional]
    """natural-manmade, random:SEED or a TOML file."""
    data: str | None = None
    """builtin, a source of images or a prepared store; by default the 1000 ILSVRC12 classes."""

    def run(self, console: Console) -> int:
        from fasttransfer.study import splits

        split, words = _split_of(self.split, self.data)
        rows = plain_table("task", "label", "class", "words")
        for row in splits.show(split, words):
            rows.add_row(*map(str, row))
        console.print(rows)
        return 0


@dataclass(frozen=True)
class SplitsExport:
    """Print a split as a TOML file that you can edit and pass to --split.

    For example:

        fasttransfer splits export natural-manmade --data my-images > mine.toml
    """

    split: Annotated[str, tyro.conf.Positional]
    """natural-manmade, random:SEED or a TOML file."""
    data: str | None = None
    """builtin, a source of images or a prepared store; by default the 1000 ILSVRC12 classes."""
    validation_list: Literal["A", "B"] | None = None
    """Print the paper's list of this half instead: one line "<ILSVRC12 validation file> <new label>" per image."""

    def run(self, console: Console) -> int:
        from fasttransfer.study import splits

        split, words = _split_of(self.split, self.data)
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

        rows = plain_table("half", "published", "found", "")
        checks = splits.verify()
        for half, published, found in checks:
            rows.add_row(half, published, found, "same" if published == found else "DIFFERENT")
        console.print(rows)
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


def _split_of(spec: str, data: str | None) -> tuple[Any, dict[str, str]]:
    """Return the split `spec` of the classes of `data` (ILSVRC12's when None), and the classes' words."""
    from fasttransfer.study import images, splits

    if data is None:
        words = splits.load_ilsvrc12_words()
        return splits.make_split(spec, list(words)), words
    source = images.find_source(data)
    return splits.make_split(spec, source.classes), source.words
