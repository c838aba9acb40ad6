"""The command line: parse, call, print.

Each command is a dataclass: its docstring and its fields' docstrings are its manual page.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.text import Text

from fasttransfer.analysis import Score
from fasttransfer.bench.cli import Bench
from fasttransfer.errors import InputError
from fasttransfer.features.commands import Cache
from fasttransfer.probe.command import Probe
from fasttransfer.study import Choices, Feeding
from fasttransfer.tables import plain_table


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
    tensorboard: bool = False
    """Write validation checks as TensorBoard event files as well, into <out>/tensorboard."""
    dry_run: bool = False
    """Only print the networks, what depends on what, and the time, memory and disk that what is left will take."""
    feeding: Feeding = field(default_factory=Feeding)

    def run(self, console: Console) -> int:
        from fasttransfer import forecast, grid

        if self.dry_run:
            forecast.dry_run(self, self.out, feeding=self.feeding, console=console)
            return 0
        done = grid.run(self, self.out, feeding=self.feeding, console=console, tensorboard=self.tensorboard)
        return 0 if done else 130


@dataclass(frozen=True)
class Base(Choices):
    """Train only the base networks of a study: started by torchrun, all of its processes train each one together.

    Each process takes its part of every batch, on a GPU of its own or on the CPU, and gradients are averaged: the same
    order of pictures, the same result but for rounding. grid with the same options finds the networks done and trains
    the rest of the study. The same command again resumes.

    For example, on a machine with eight GPUs:

        torchrun --nproc-per-node 8 -m fasttransfer base --task A --data ILSVRC2012
    """

    task: Literal["A", "B"] | None = None
    """The task to train it on; by default both, one after the other."""
    out: Path | None = None
    """Folder of the study; by default runs/<pictures>-<split>."""
    feeding: Feeding = field(default_factory=Feeding)

    def run(self, console: Console) -> int:
        from fasttransfer import distributed

        tasks = (self.task,) if self.task else ("A", "B")
        return distributed.train_bases(self, self.out, tasks=tasks, feeding=self.feeding, console=console)


@dataclass(frozen=True)
class Report:
    """Write the report of a study again and print its table; works while the study is still training.

    With --paper the published results of Yosinski et al. 2014 are laid behind the study's differences from the base.
    Without a study, --paper draws the paper's own figures from those results alone.

    For example:

        fasttransfer report runs/builtin-natural-manmade --paper
    """

    study: Annotated[Path | None, tyro.conf.Positional] = None
    """Folder of the study, the --out of grid."""
    paper: bool = False
    """Lay the paper's curves behind the study's; without a study, draw the paper's."""
    score: Score | None = None
    """last (the last validation check; the default) or best10 (mean of the ten best, as the paper plots; the default of
    --paper without a study)."""
    out: Path | None = None
    """Where --paper without a study writes; by default runs/paper."""

    def run(self, console: Console) -> int:
        from fasttransfer import paper, records
        from fasttransfer.report import table, write_paper, write_report

        if self.study is None:
            if not self.paper:
                raise InputError("report: name the folder of a study, or --paper for the published results alone")
            score: Score = self.score or "best10"
            recorded = paper.recorded("random")
            index = write_paper(self.out or Path("runs") / "paper", score=score)
        else:
            if self.out is not None:
                raise InputError(f"--out goes with --paper alone: the report of {self.study} lies in its folder")
            score = self.score or "last"
            recorded = records.read(self.study)
            overlay = paper.like(recorded) if self.paper else None
            index = write_report(recorded, self.study, score=score, overlay=overlay)
        console.print(table(recorded, score=score))
        console.print(Text(f"report: {index}"), soft_wrap=True)
        return 0


@dataclass(frozen=True)
class Advise:
    """Say which layers to copy for a task, whether to freeze them, and what freezing saves.

    The best cut and treatment with its interval, and the cheapest that cannot be told from it, among training from
    scratch and the transfer networks of the study.

    For example:

        fasttransfer advise runs/builtin-natural-manmade --target B
    """

    study: Annotated[str, tyro.conf.Positional]
    """Folder of the study, the --out of grid, or a part of the paper, as paper:random."""
    target: Literal["A", "B"] | None = None
    """The task to advise on; by default each that has transfer networks."""
    score: Literal["last", "best10"] = "last"
    """last (the last validation check) or best10 (mean of the ten best, as the paper plots)."""

    def run(self, console: Console) -> int:
        from fasttransfer import analysis, runs
        from fasttransfer.report.advice import advice_table

        recorded = runs.read(self.study)
        if self.target:
            console.print(advice_table(recorded, analysis.advise(recorded, self.target, self.score)))
            return 0
        found, refused = [], []
        for target in analysis.targets_of(recorded.results):
            try:
                found.append(advice_table(recorded, analysis.advise(recorded, target, self.score)))
            except InputError as error:  # one task may be ready before the other
                refused.append(error)
        if not found:
            raise refused[0] if refused else InputError(f"{self.study}: the study has no networks yet")
        console.print(*found, *(Text(str(error)) for error in refused), sep="\n")
        return 0


@dataclass(frozen=True)
class Compare:
    """Show studies side by side: paired differences for every n, and how far they are from the first study's.

    Bases are shown against the number of training pictures a class where that differs. Studies that differ in their
    random split only are joined into one whose interval is over splits.

    For example:

        fasttransfer compare paper:random paper:natural-manmade --score best10
    """

    studies: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Folders of studies, or parts of the paper: paper:random, paper:natural-manmade, paper:full, paper:reduced."""
    score: Score = "last"
    """last (the last validation check) or best10 (mean of the ten best, as the paper plots)."""
    out: Path | None = None
    """Write a page with figures into this folder as well."""

    def run(self, console: Console) -> int:
        from fasttransfer import analysis, runs
        from fasttransfer.report import write_comparison
        from fasttransfer.report.comparison import comparison_table

        comparison = analysis.compare([runs.read(study) for study in self.studies], self.score)
        console.print(comparison_table(comparison))
        if self.out is not None:
            words = ["fasttransfer", "compare", *self.studies, "--score", self.score, "--out", str(self.out)]
            index = write_comparison(comparison, self.out, command=shlex.join(words))
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

        rows = plain_table("--split", "A", "B", "what it is")
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
    """builtin, a source of pictures or a prepared store; by default the 1000 ILSVRC12 classes."""

    def run(self, console: Console) -> int:
        from fasttransfer import splits

        split, words = _split_of(self.split, self.data)
        rows = plain_table("task", "label", "class", "words")
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
    """builtin, a source of pictures or a prepared store; by default the 1000 ILSVRC12 classes."""
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

        rows = plain_table("half", "published", "found", "")
        checks = splits.verify()
        for check in checks:
            rows.add_row(check.half, check.expected, check.found, "same" if check.same else "DIFFERENT")
        console.print(rows)
        return 0 if all(check.same for check in checks) else 1


@dataclass(frozen=True)
class DataInspect:
    """Say what a source of pictures or a prepared store holds: layout, classes, counts, sizes, bad files.

    For example, with a contact sheet of some pictures of some classes:

        fasttransfer data inspect tiny-imagenet-200 --sheet tiny.png
    """

    source: Annotated[Path, tyro.conf.Positional]
    """Folder or uncompressed tar of pictures, the folder of a store, or builtin."""
    sheet: Path | None = None
    """Draw a contact sheet into this file, a .png or a .jpg."""

    def run(self, console: Console) -> int:
        from fasttransfer import grid
        from fasttransfer.pipelines import sheet
        from fasttransfer.pipelines.inspection import inspect, open_pictures
        from fasttransfer.study import BUILTIN, load_recipe

        if self.sheet is not None:
            sheet.check_name(self.sheet)
        source = self.source
        if str(source) == BUILTIN:
            source = grid.builtin_store(load_recipe("mini").geometry.store, _say(console)).folder
        opened = open_pictures(source)
        found = inspect(opened)
        rows = plain_table("", "")
        rows.add_row(found.kind, str(found.path))
        if found.store is not None:
            rows.add_row("kind", f"{found.store.kind}, {found.store.disk / 1e6:,.1f} MB on disk")
            rows.add_row("digest", found.store.digest)
            rows.add_row("from", f"{found.store.source}, fit: {found.store.fit}")
            rows.add_row("versions", ", ".join(f"{name} {version}" for name, version in found.store.versions.items()))
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
        if self.sheet is not None:
            sheet.write_sheet(opened, self.sheet)
            console.print(Text(f"contact sheet: {self.sheet}"), soft_wrap=True)
        return 0


@dataclass(frozen=True)
class DataPrepare:
    """Decode every picture of a source once and write a store, which a study reads at the speed of memory.

    An interrupted or killed prepare goes on when the same command is given again, and ends with the same files. Room on
    the disk is asked for first: raw takes 3 bytes a pixel, 262 GB for ILSVRC12 at 256 x 256; jpeg about a sixth.

    For example:

        fasttransfer data prepare ILSVRC2012 stores/ilsvrc12
    """

    source: Annotated[Path, tyro.conf.Positional]
    """Folder or uncompressed tar of pictures."""
    store: Annotated[Path, tyro.conf.Positional]
    """Folder to be made; a store of these pictures that is there already stays as it is."""
    recipe: str | None = None
    """Make the size fit this recipe of grid: caffe, fast, mini or a TOML file; by default the one that grid takes for
    these pictures."""
    size: int | None = None
    """Side of the stored pictures in pixels, instead of the recipe's."""
    kind: Literal["raw", "jpeg"] = "raw"
    """raw (NumPy arrays of pixels) or jpeg (tar shards in WebDataset's convention, quality 95)."""
    fit: Literal["stretch", "crop"] = "stretch"
    """stretch (the whole picture, its aspect not kept, as Caffe did) or crop (the square in the middle)."""
    bad_pictures: Literal["fail", "skip"] = "fail"
    """What to do about files that cannot be decoded: name them all and stop, or leave them out and list them."""
    device: Literal["cpu", "cuda"] | None = None
    """Where to decode; by default a GPU where there is one."""

    def run(self, console: Console) -> int:
        from fasttransfer import machine
        from fasttransfer.pipelines.layouts import find_pictures
        from fasttransfer.pipelines.prepare import prepare_into
        from fasttransfer.study import default_recipe, load_recipe

        if self.size is not None and self.recipe is not None:
            raise InputError(f"--size {self.size} and --recipe {self.recipe} both say the size: drop one")
        device = machine.device_for(self.device)
        listing = find_pictures(self.source)
        size = self.size
        if size is None:
            recipe = load_recipe(self.recipe or default_recipe(listing.layout))
            size = recipe.geometry.store
            console.print(Text(f"{size} x {size} pixels, for recipe {recipe.name}"), soft_wrap=True)
        store = prepare_into(
            listing,
            self.store,
            size=size,
            kind=self.kind,
            fit=self.fit,
            bad_pictures=self.bad_pictures,
            device=device,
            say=_say(console),
        )
        console.print(Text(f"store: {store.folder}"), soft_wrap=True)
        return 0


@dataclass(frozen=True)
class DataVerify:
    """Read a whole store back, compare it with what was written, and decode every picture of a jpeg store.

    Names the files that differ and which pictures are in them.

    For example:

        fasttransfer data verify stores/ilsvrc12
    """

    store: Annotated[Path, tyro.conf.Positional]
    """Folder of the store."""

    def run(self, console: Console) -> int:
        from fasttransfer.pipelines.store import Store

        store = Store.open(self.store)
        store.verify(_say(console))
        pictures = len(store.train) + len(store.val)
        console.print(Text(f"{store.folder}: all {pictures:,} pictures are as they were written"), soft_wrap=True)
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

        store = grid.builtin_store(load_recipe("mini").geometry.store, _say(console))
        console.print(Text(store.manifest["source"]), soft_wrap=True)
        return 0


@dataclass(frozen=True)
class Info:
    """Print versions, device, and what is built and loaded: for bug reports.

    For example:

        fasttransfer info
    """

    def run(self, console: Console) -> int:
        from fasttransfer import info

        rows = plain_table("", "")
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
    """Look at pictures, and prepare them, before training on them."""

    command: (
        Annotated[DataInspect, tyro.conf.subcommand("inspect")]
        | Annotated[DataPrepare, tyro.conf.subcommand("prepare")]
        | Annotated[DataVerify, tyro.conf.subcommand("verify")]
        | Annotated[DataBuiltin, tyro.conf.subcommand("builtin")]
    )

    def run(self, console: Console) -> int:
        return self.command.run(console)


_Commands = (
    Annotated[Grid, tyro.conf.subcommand("grid")]
    | Annotated[Base, tyro.conf.subcommand("base")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Advise, tyro.conf.subcommand("advise")]
    | Annotated[Compare, tyro.conf.subcommand("compare")]
    | Annotated[Probe, tyro.conf.subcommand("probe")]
    | Annotated[Splits, tyro.conf.subcommand("splits")]
    | Annotated[Data, tyro.conf.subcommand("data")]
    | Annotated[Cache, tyro.conf.subcommand("cache")]
    | Annotated[Bench, tyro.conf.subcommand("bench")]
    | Annotated[Info, tyro.conf.subcommand("info")]
)


def _split_of(spec: str, data: str | None) -> tuple[Any, dict[str, str]]:
    """The split `spec` of the classes of `data` (ILSVRC12's when None), and the classes' words."""
    from fasttransfer import pictures, splits

    if data is None:
        words = splits.known_words()
        return splits.make_split(spec, list(words)), words
    found = pictures.find(data)
    return splits.make_split(spec, found.classes), found.words


def _say(console: Console) -> Callable[[str], None]:
    return lambda text: console.print(Text(text), soft_wrap=True)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


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
