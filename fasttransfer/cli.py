"""The command line: parse, call, print.

Each command is a dataclass: its docstring and its fields' docstrings are its manual page.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fasttransfer.errors import InputError
from fasttransfer.study import Choices


@dataclass(frozen=True)
class Grid(Choices):
    """Train the networks of the study and show how transferable each layer is.

    Base networks are trained on tasks A and B; for each target task and n, networks with the first n layers copied
    from a base (selffer: from the same task, transfer: from the other), frozen or fine-tuned (+), and the control with
    n random, frozen layers. The same command again resumes an interrupted study, or does nothing when it is done.

    For example, a study of small real pictures that fits an afternoon:

        fasttransfer grid --split natural-manmade --data tiny-imagenet-200 --classes 40 --epochs 20
    """

    out: Path | None = None
    """Folder of the study; by default runs/<pictures>-<split>."""
    dry_run: bool = False
    """Only print the networks, what depends on what, and the time and disk it will take."""

    def run(self, console: Console) -> int:
        from fasttransfer import grid

        if self.dry_run:
            grid.dry_run(self, self.out, console=console)
            return 0
        return 0 if grid.run(self, self.out, console=console) else 130


@dataclass(frozen=True)
class Report:
    """Write the report of a study again and print its table; works while the study is still training.

    For example:

        fasttransfer report runs/builtin-natural-manmade
    """

    study: Annotated[Path, tyro.conf.Positional]
    """Folder of the study, the --out of grid."""
    score: Literal["last", "best10"] = "last"
    """last (the last validation check) or best10 (mean of the ten best, as the paper plots)."""

    def run(self, console: Console) -> int:
        from fasttransfer import records
        from fasttransfer.report import table, write_report

        recorded = records.read(self.study)
        index = write_report(recorded, self.study, score=self.score)
        console.print(table(recorded, score=self.score))
        console.print(Text(f"report: {index}"), soft_wrap=True)
        return 0


@dataclass(frozen=True)
class SplitsList:
    """List the splits that exist without a file.

    For example:

        fasttransfer splits list
    """

    def run(self, console: Console) -> int:
        from fasttransfer import splits

        rows = _table("--split", "A", "B", "what it is")
        for known in splits.list_splits():
            rows.add_row(known.spec, str(known.a), str(known.b), known.about)
        console.print(rows)
        return 0


@dataclass(frozen=True)
class SplitsShow:
    """Show which classes a split puts into which task.

    For example:

        fasttransfer splits show random:0
    """

    split: Annotated[str, tyro.conf.Positional]
    """natural-manmade, random:SEED or a TOML file."""
    data: str | None = None
    """builtin or a source of pictures; by default the 1000 ILSVRC12 classes."""

    def run(self, console: Console) -> int:
        from fasttransfer import splits

        split, words = _split_of(self.split, self.data)
        rows = _table("task", "label", "class", "words")
        for member in splits.show(split, words):
            rows.add_row(member.task, str(member.label), member.name, member.words)
        console.print(rows)
        return 0


@dataclass(frozen=True)
class SplitsExport:
    """Print a split as a TOML file that --split reads, to be changed and used.

    For example:

        fasttransfer splits export natural-manmade --data my-pictures > mine.toml
    """

    split: Annotated[str, tyro.conf.Positional]
    """natural-manmade, random:SEED or a TOML file."""
    data: str | None = None
    """builtin or a source of pictures; by default the 1000 ILSVRC12 classes."""
    validation_list: Literal["A", "B"] | None = None
    """Print the paper's list of this half instead: "<ILSVRC12 validation file> <new label>" a line."""

    def run(self, console: Console) -> int:
        from fasttransfer import splits

        split, words = _split_of(self.split, self.data)
        if self.validation_list:
            text = splits.validation_list(split.a if self.validation_list == "A" else split.b)
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
        from fasttransfer import splits

        rows = _table("half", "published", "found", "")
        checks = splits.verify()
        for check in checks:
            rows.add_row(check.half, check.expected, check.found, "same" if check.same else "DIFFERENT")
        console.print(rows)
        return 0 if all(check.same for check in checks) else 1


@dataclass(frozen=True)
class DataInspect:
    """Say what a source of pictures or a prepared store holds: layout, classes, counts, sizes, bad files.

    For example:

        fasttransfer data inspect tiny-imagenet-200
    """

    source: Annotated[Path, tyro.conf.Positional]
    """Folder or uncompressed tar of pictures, or the folder of a store."""

    def run(self, console: Console) -> int:
        from fasttransfer.pipelines.inspection import inspect

        found = inspect(self.source)
        rows = _table("", "")
        rows.add_row(found.kind, str(found.path))
        rows.add_row("layout", found.layout)
        rows.add_row("classes", str(len(found.classes)))
        for part, count in found.pictures.items():
            spread = found.per_class[part]
            rows.add_row(part, f"{count:,} pictures, {spread.least} to {spread.most} a class, median {spread.median:g}")
        if found.widths and found.heights:
            sizes = " x ".join(f"{s.least}-{s.most} (median {s.median:g})" for s in (found.widths, found.heights))
            rows.add_row("pixels", sizes)
        rows.add_row("formats", _counts(found.formats))
        rows.add_row("modes", _counts(found.modes))
        rows.add_row("looked at", f"{found.sampled:,} pictures")
        for note in found.notes:
            rows.add_row("note", note)
        for path, reason in found.bad:
            rows.add_row("bad", f"{path}: {reason}")
        console.print(rows)
        return 0


@dataclass(frozen=True)
class DataBuiltin:
    """Render the built-in pictures, unless that is done, and say where the files are.

    They are synthetic: 16 natural and 16 man-made classes, drawn by this program, so that the whole study can be
    tried without a data set.

    For example:

        fasttransfer data builtin
    """

    def run(self, console: Console) -> int:
        from fasttransfer import grid
        from fasttransfer.study import load_recipe

        def say(text: str) -> None:
            console.print(Text(text), soft_wrap=True)

        store = grid.builtin_store(load_recipe("mini").geometry.store, say)
        console.print(Text(store.manifest["source"]), soft_wrap=True)
        return 0


@dataclass(frozen=True)
class Bench:
    """Measure the operators or the training step on this machine against plain PyTorch, in one run.

    kernels: every native operator at the sizes of the paper's network, its bytes a second as a share of a plain copy's,
    and how many times as long PyTorch takes, eager and compiled. step: a training step of both networks against
    PyTorch's usual forms and against its convolutions and matrix products alone, and where its time goes.

    For example:

        fasttransfer bench kernels --only relu_pool_lrn
    """

    part: Annotated[Literal["kernels", "step"], tyro.conf.Positional]
    """What to measure."""
    quick: bool = False
    """Fewer samples and a smaller batch."""
    only: str = ""
    """Measure only the cases whose names contain this."""
    device: Literal["cpu", "cuda"] | None = None
    """By default a GPU where there is one."""
    out: Path | None = None
    """Write the numbers to this JSON file as well."""

    def run(self, console: Console) -> int:
        from fasttransfer import machine
        from fasttransfer.bench import command

        device = machine.device_for(self.device)
        command.run(self.part, quick=self.quick, only=self.only, device=device, out=self.out, console=console)
        return 0


@dataclass(frozen=True)
class Info:
    """Print versions, device, and what is built and loaded: for bug reports.

    For example:

        fasttransfer info
    """

    def run(self, console: Console) -> int:
        from fasttransfer import info

        rows = _table("", "")
        for name, value in info.collect().items():
            rows.add_row(name, Text(value, overflow="fold"))
        console.print(rows)
        return 0


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


@dataclass(frozen=True)
class Data:
    """Look at pictures before training on them."""

    command: (
        Annotated[DataInspect, tyro.conf.subcommand("inspect")]
        | Annotated[DataBuiltin, tyro.conf.subcommand("builtin")]
    )

    def run(self, console: Console) -> int:
        return self.command.run(console)


_Commands = (
    Annotated[Grid, tyro.conf.subcommand("grid")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Splits, tyro.conf.subcommand("splits")]
    | Annotated[Data, tyro.conf.subcommand("data")]
    | Annotated[Bench, tyro.conf.subcommand("bench")]
    | Annotated[Info, tyro.conf.subcommand("info")]
)


def _split_of(spec: str, data: str | None) -> tuple[Any, dict[str, str]]:
    """The split `spec` of the classes of `data` (ILSVRC12's when None), and the classes' words."""
    from fasttransfer import splits
    from fasttransfer.pipelines.layouts import find_pictures
    from fasttransfer.pipelines.synthetic import SIDES

    if data is None:
        words = splits.known_words()
        return splits.make_split(spec, list(words)), words
    if data == "builtin":
        return splits.make_split(spec, sorted(SIDES)), {}
    listing = find_pictures(Path(data))
    return splits.make_split(spec, listing.classes), listing.words


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, show_header=any(headings), header_style="bold")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `fasttransfer`. Exit codes: 0 done, 2 bad input, 130 interrupted; a bug keeps its stack trace."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Runs one command; returns its exit code."""
    console = Console(highlight=False)
    try:
        return _parse(arguments).run(console)
    except InputError as error:
        print(f"fasttransfer: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("fasttransfer: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # e.g. `fasttransfer splits show … | head`
        sys.stderr.close()
        return 0


def _parse(arguments: Sequence[str]) -> Any:
    return tyro.cli(
        _Commands,
        prog="fasttransfer",
        description="How transferable is each layer of a network? The study of Yosinski et al. 2014 at today's speed.",
        args=list(arguments),
        config=(
            tyro.conf.DisallowNone,
            tyro.conf.OmitArgPrefixes,
            tyro.conf.OmitSubcommandPrefixes,
            tyro.conf.FlagCreatePairsOff,
        ),
    )
