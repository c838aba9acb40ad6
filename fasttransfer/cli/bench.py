"""The commands of `fasttransfer bench`: parse, call, print."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro
from rich.console import Console

from fasttransfer.cli.console import printer
from fasttransfer.core.errors import InputError


@dataclass(frozen=True)
class _Suite:
    """The options of all suites."""

    suite: ClassVar[str]

    quick: bool = False
    """Fewer samples, smaller batches, nothing compiled: rough numbers in a fraction of the time."""
    only: str = ""
    """Measure only the cases whose names contain this."""
    device: Literal["cpu", "cuda"] | None = None
    """By default a GPU where there is one."""
    out: Path | None = None
    """Write the numbers to this JSON file, in pytest-benchmark's format."""
    baseline: tuple[Path, ...] = ()
    """The JSON files of earlier runs: exit with 1 if a ratio to PyTorch has become smaller than on the same kind of
    machine, or than half of the least where there is none of this kind."""

    def run(self, console: Console) -> int:
        _need_pytest_benchmark()
        from fasttransfer.bench import harness

        return harness.run(self.suite, **{field.name: getattr(self, field.name) for field in fields(self)})


@dataclass(frozen=True)
class _SuiteWithImages(_Suite):
    data: Path | None = None
    """Images: a source as grid takes it; by default some are drawn."""


@dataclass(frozen=True)
class BenchOperators(_Suite):
    """Measure every native operator at the sizes of the paper's network.

    Against PyTorch, eager and compiled, and a plain copy of the bytes that the operator has to move.

    For example:

        fasttransfer bench operators --only relu_pool_lrn
    """

    suite = "operators"


@dataclass(frozen=True)
class BenchStep(_Suite):
    """Measure a training step of both networks; the JSON has where its time goes.

    Against PyTorch's usual forms, and against the step's convolutions and matrix products alone.

    For example:

        fasttransfer bench step --only mini
    """

    suite = "step"


@dataclass(frozen=True)
class BenchFeed(_SuiteWithImages):
    """Measure how images are decoded, resized, prepared and fed to a network, on one core and on all.

    Against Pillow, torchvision, PyTorch's DataLoader and DALI on the same images.

    For example:

        fasttransfer bench feed --data tiny-imagenet-200 --only feed
    """

    suite = "feed"


@dataclass(frozen=True)
class BenchGrid(_SuiteWithImages):
    """Train a whole study, and the same as one would write it in plain PyTorch, both to the end.

    Time, memory, top-1, and the share of the time that the arithmetic alone would take.

    For example, on two classes per task and for a moment:

        fasttransfer bench grid --quick --classes 2
    """

    suite = "grid"
    epochs: float | None = None
    """Length of training, in passes over a task's images, instead of the recipe's."""
    classes: int | None = None
    """Use this many classes of each task."""
    without_plain: bool = False
    """Leave plain PyTorch out, which takes several times as long."""


@dataclass(frozen=True)
class BenchAll:
    """Measure all of it within a quarter of an hour, and write a page.

    The study is one epoch of three cuts. The page names what was left out, as precisions that the processor emulates.

    For example:

        fasttransfer bench all --out runs/bench
    """

    device: Literal["cpu", "cuda"] | None = None
    """By default a GPU where there is one."""
    data: Path | None = None
    """Images: a source as grid takes it; by default some are drawn."""
    out: Path = Path("runs/bench")
    """Folder to write results.json and page.md into."""
    quick: bool = False
    """Fewer samples, smaller batches, nothing compiled: rough numbers in a fraction of the time."""

    def run(self, console: Console) -> int:
        _need_pytest_benchmark()
        from fasttransfer.bench import harness

        results, page = self.out / "results.json", self.out / "page.md"
        given = {"device": self.device, "data": self.data, "quick": self.quick}
        code = harness.run("all", baseline=(), out=results, page=page, quick_grid=True, **given)
        printer(console)(f"page: {page}")
        return code


@dataclass(frozen=True)
class Bench:
    """Measure this program on this machine against plain PyTorch."""

    command: (
        Annotated[BenchOperators, tyro.conf.subcommand("operators")]
        | Annotated[BenchStep, tyro.conf.subcommand("step")]
        | Annotated[BenchFeed, tyro.conf.subcommand("feed")]
        | Annotated[BenchGrid, tyro.conf.subcommand("grid")]
        | Annotated[BenchAll, tyro.conf.subcommand("all")]
    )

    def run(self, console: Console) -> int:
        return self.command.run(console)


def _need_pytest_benchmark() -> None:
    try:
        import pytest_benchmark  # noqa: F401
    except ImportError as error:
        raise InputError("bench needs pytest-benchmark: pip install 'fasttransfer[bench]'") from error
