"""The commands of `fasttransfer bench`: parse, call, print."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import tyro
from rich.console import Console
from rich.text import Text

from fasttransfer.core.errors import InputError


@dataclass(frozen=True)
class _Part:
    """The options of all parts."""

    part: ClassVar[str]

    quick: bool = False
    """Fewer samples, a smaller batch, fewer images: rough numbers in a fraction of the time."""
    full: bool = False
    """All samples and sizes, as without --quick."""
    only: str = ""
    """Measure only the cases whose names contain this."""
    device: Literal["cpu", "cuda"] | None = None
    """By default a GPU where there is one."""
    out: Path | None = None
    """Write the numbers to this JSON file as well."""

    @property
    def given(self) -> dict[str, Any]:
        """The options that only some parts have, by the names of `command.run`."""
        return {}

    def run(self, console: Console) -> int:
        from fasttransfer.bench import command
        from fasttransfer.core import devices

        command.run(
            self.part,
            quick=_quick(self.quick, self.full),
            only=self.only,
            device=devices.choose_device(self.device),
            out=self.out,
            console=console,
            **self.given,
        )
        return 0


@dataclass(frozen=True)
class _PartWithImages(_Part):
    data: Path | None = None
    """Images: a source as grid takes it; by default some are drawn."""

    @property
    def given(self) -> dict[str, Any]:
        return {"source": self.data}


@dataclass(frozen=True)
class BenchCeilings(_PartWithImages):
    """Measure what this machine can do at the most: copies, matrix products, convolutions, decoding.

    For example:

        fasttransfer bench ceilings
    """

    part = "ceilings"


@dataclass(frozen=True)
class BenchKernels(_Part):
    """Measure every native operator at the sizes of the paper's network.

    Its bytes per second as a share of a plain copy's, and how many times as long PyTorch takes, eager and compiled.

    For example:

        fasttransfer bench kernels --only relu_pool_lrn
    """

    part = "kernels"


@dataclass(frozen=True)
class BenchStep(_Part):
    """Measure a training step of both networks, and where its time goes.

    Against PyTorch's usual forms and against its convolutions and matrix products alone.

    For example:

        fasttransfer bench step --only caffenet
    """

    part = "step"


@dataclass(frozen=True)
class BenchCells(_Part):
    """Measure a training step of the paper's network from every cut, and the frozen stages before it.

    What the projection of the whole study is made of.

    For example:

        fasttransfer bench cells
    """

    part = "cells"


@dataclass(frozen=True)
class BenchData(_PartWithImages):
    """Measure how images are decoded, prepared and fed, and the memory that takes.

    Beside Pillow, torchvision, PyTorch's DataLoader and DALI on the same images, on one core and on all.

    For example:

        fasttransfer bench data --data tiny-imagenet-200 --only feed
    """

    part = "data"


@dataclass(frozen=True)
class BenchFeatures(_Part):
    """Measure packing and unpacking of frozen features against a plain copy, on one core.

    For example:

        fasttransfer bench features
    """

    part = "features"


@dataclass(frozen=True)
class BenchCached(_Part):
    """Measure a frozen cell of the paper's network from the cache of features against the same cell live.

    And what it takes to fill the cache, against the forward pass that it cannot do without.

    For example:

        fasttransfer bench cached --only "n = 7"
    """

    part = "cached"


@dataclass(frozen=True)
class BenchAblation(_PartWithImages):
    """Measure the training step without each of the ideas it is made of: what each is worth on this machine.

    For example:

        fasttransfer bench ablation --only step
    """

    part = "ablation"


@dataclass(frozen=True)
class BenchGrid(_PartWithImages):
    """Train a whole study, and the same as one would write it in plain PyTorch, both to the end.

    Time, memory, top-1, and the share of what the arithmetic alone would take. --only cohort leaves plain PyTorch out.

    For example, on two classes per task and for a moment:

        fasttransfer bench grid --quick --classes 2
    """

    part = "grid"
    epochs: float | None = None
    """Length of training, in passes over a task's images, instead of the recipe's."""
    classes: int | None = None
    """Use this many classes of each task."""

    @property
    def given(self) -> dict[str, Any]:
        return {"source": self.data, "epochs": self.epochs, "classes": self.classes}


@dataclass(frozen=True)
class BenchAll:
    """Measure everything in one run and write a page: ceilings, operators, step, cells, images, features, ideas.

    The default study is trained as well; what plain PyTorch takes for it is left to bench grid. Of what bench cached
    measures there are n = 5 and 7.

    The results are in the JSON file as soon as they are known; when all are, a page of them is written beside it, as
    HTML and as Markdown, each number with the command that measures it alone.

    For example:

        fasttransfer bench all --quick
    """

    quick: bool = False
    """Fewer samples, a smaller batch, fewer images: rough numbers in a fraction of the time."""
    full: bool = False
    """All samples and sizes, as without --quick."""
    data: Path | None = None
    """Images to decode and feed: a source as grid takes it; by default some are drawn. The study has its own."""
    device: Literal["cpu", "cuda"] | None = None
    """By default a GPU where there is one."""
    out: Path = Path("runs") / "bench" / "bench-all.json"
    """The JSON file."""
    price: float | None = None
    """What an hour of this machine costs, for what all of the paper's networks would; in any currency."""

    def run(self, console: Console) -> int:
        from fasttransfer.bench import suite
        from fasttransfer.core import devices

        good = suite.run(
            quick=_quick(self.quick, self.full),
            device=devices.choose_device(self.device),
            out=self.out,
            console=console,
            source=self.data,
            price=_price(self.price),
        )
        return 0 if good else 1


@dataclass(frozen=True)
class BenchPage:
    """Write the page of what was measured: of a run of `bench all`, or of runs of single parts.

    For example, with what a GPU reached beside a CPU's numbers:

        fasttransfer bench page bench-all.json gpu-results/bench-all.json
    """

    results: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """JSON files of bench. The page is about the device of the first, with the goals that another one reached."""
    out: Path | None = None
    """Its name, with .html and .md in place of its ending; by default that of the first file."""
    price: float | None = None
    """What an hour of the first one's machine costs, instead of what its run was told."""

    def run(self, console: Console) -> int:
        from fasttransfer.bench import pages, readings

        if not self.results:
            raise InputError("bench page: name at least one JSON file that fasttransfer bench wrote")
        found = readings.merged([readings.read(path) for path in self.results])
        if self.price is not None:
            found[0]["price"] = _price(self.price)
        for path in pages.write_pages(found, self.out or self.results[0]):
            console.print(Text(f"written: {path}"), soft_wrap=True)
        return 0


@dataclass(frozen=True)
class BenchCompare:
    """Compare two results of bench, of all parts or of the same one, and name what became slower.

    Ratios to what was measured in the same run are compared always, times only where both are of one machine; a change
    counts where it is more than the samples of both spread. Exit code 1 where something became slower.

    For example:

        fasttransfer bench compare bench/results/bench-all.json runs/bench/bench-all.json
    """

    old: Annotated[Path, tyro.conf.Positional]
    """JSON file of the earlier run."""
    new: Annotated[Path, tyro.conf.Positional]
    """JSON file of the later one."""

    def run(self, console: Console) -> int:
        from fasttransfer.bench import readings
        from fasttransfer.bench.rows import Rows

        old, new = readings.read(self.old), readings.read(self.new)
        changes = readings.compare(old, new)
        if not changes:
            raise InputError(f"{self.old} and {self.new} have no case in common: compare results of the same part")
        if not readings.same_machine(old, new):
            console.print("Of different machines: ratios are compared, times are not.")
        told = [change for change in changes if change.worse or change.better]
        if told:
            rows = Rows(console, ("", 10), ("old", 12), ("new", 12), ("as good", 9), ("noise", 7), ("what", 0))
            for change in sorted(told, key=lambda change: change.times):
                unit = "x" if change.ratio else " ms"
                scale = 1 if change.ratio else 1e3
                numbers = (f"{value * scale:,.2f}{unit}" for value in (change.old, change.new))
                verdict = "SLOWER" if change.worse else "faster"
                rows.add(verdict, *numbers, f"{change.times:.2f}x", f"{change.allowed:.0%}", change.name)
        worse = sum(change.worse for change in changes)
        console.print(Text(f"{len(changes)} readings compared: {worse} slower, {len(told) - worse} faster"))
        return 1 if worse else 0


@dataclass(frozen=True)
class Bench:
    """Measure this program on this machine against plain PyTorch, and compare what was measured."""

    command: (
        Annotated[BenchAll, tyro.conf.subcommand("all")]
        | Annotated[BenchCeilings, tyro.conf.subcommand("ceilings")]
        | Annotated[BenchKernels, tyro.conf.subcommand("kernels")]
        | Annotated[BenchStep, tyro.conf.subcommand("step")]
        | Annotated[BenchCells, tyro.conf.subcommand("cells")]
        | Annotated[BenchData, tyro.conf.subcommand("data")]
        | Annotated[BenchFeatures, tyro.conf.subcommand("features")]
        | Annotated[BenchCached, tyro.conf.subcommand("cached")]
        | Annotated[BenchAblation, tyro.conf.subcommand("ablation")]
        | Annotated[BenchGrid, tyro.conf.subcommand("grid")]
        | Annotated[BenchCompare, tyro.conf.subcommand("compare")]
        | Annotated[BenchPage, tyro.conf.subcommand("page")]
    )

    def run(self, console: Console) -> int:
        return self.command.run(console)


def _quick(quick: bool, full: bool) -> bool:
    if quick and full:
        raise InputError("--quick and --full: drop one of them")
    return quick


def _price(price: float | None) -> float | None:
    if price is not None and not 0 < price < float("inf"):
        raise InputError(f"--price {price:g}: a positive number is needed")
    return price
