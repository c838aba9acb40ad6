"""`fasttransfer data …`: inspects and prepares images before training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from fasttransfer.cli.console import print_facts, printer
from fasttransfer.core.errors import InputError


@dataclass(frozen=True)
class DataInspect:
    """Show the contents of a source of images or a prepared store: layout, classes, counts, sizes, bad files.

    For example, with a contact sheet of some images of some classes:

        fasttransfer data inspect tiny-imagenet-200 --sheet tiny.png
    """

    source: Annotated[Path, tyro.conf.Positional]
    """Folder or uncompressed tar of images, the folder of a store, or builtin."""
    sheet: Path | None = None
    """File to draw a contact sheet into, a .png or a .jpg."""

    def run(self, console: Console) -> int:
        from fasttransfer.pipelines import contact_sheet
        from fasttransfer.pipelines.inspection import inspect, open_images
        from fasttransfer.pipelines.store import Store
        from fasttransfer.study import images
        from fasttransfer.study.configuration import BUILTIN
        from fasttransfer.study.recipe import load_recipe

        if self.sheet is not None:
            contact_sheet.check_name(self.sheet)
        source = self.source
        if str(source) == BUILTIN:
            source = images.builtin_store(load_recipe("mini").network.store, printer(console)).folder
        opened = open_images(source)
        report = inspect(opened)
        if isinstance(opened, Store):
            manifest, size = opened.manifest, sum(path.stat().st_size for path in opened.folder.iterdir())
            facts = [
                ("store", str(opened.folder)),
                ("kind", f"{opened.kind}, {size / 1e6:,.1f} MB on disk"),
                ("digest", opened.digest),
                ("from", f"{manifest['source']}, fit: {manifest.get('fit', 'stretch')}"),
                ("versions", ", ".join(f"{name} {version}" for name, version in manifest["versions"].items())),
            ]
        else:
            facts = [("source", str(opened.source))]
        facts += [("layout", report.layout), ("classes", str(len(opened.classes)))]
        for part, count in report.images.items():
            spread = report.per_class[part]
            per_class = f"{spread.least} to {spread.most} per class, median {spread.median:g}"
            facts.append((part, f"{count:,} images, {per_class}"))
        if report.widths and report.heights:
            sizes = " x ".join(f"{s.least}-{s.most} (median {s.median:g})" for s in (report.widths, report.heights))
            facts.append(("pixels", sizes))
        facts += [("formats", _counts(report.formats)), ("modes", _counts(report.modes))]
        facts.append(("looked at", f"{report.sampled:,} images"))
        facts += [("note", note) for note in report.notes]
        facts += [("bad", f"{path}: {reason}") for path, reason in report.bad]
        print_facts(console, facts)
        if self.sheet is not None:
            contact_sheet.write_sheet(opened, self.sheet)
            printer(console)(f"contact sheet: {self.sheet}")
        return 0


@dataclass(frozen=True)
class DataPrepare:
    """Decode every image of a source once and write a store, which a study reads at the speed of memory.

    After an interruption the same command resumes, and ends with the same files. Free disk space is checked first: raw
    takes 3 bytes per pixel, 262 GB for ILSVRC12 at 256 x 256; jpeg takes about a sixth.

    For example:

        fasttransfer data prepare ILSVRC2012 stores/ilsvrc12
    """

    source: Annotated[Path, tyro.conf.Positional]
    """Folder or uncompressed tar of images."""
    store: Annotated[Path, tyro.conf.Positional]
    """Folder of the new store; an existing store of these images stays as it is."""
    recipe: str | None = None
    """Store images at the size of this recipe of grid: caffe, fast, mini or a TOML file; by default the one that grid
    takes for these images."""
    size: int | None = None
    """Side of the stored images in pixels, instead of the recipe's."""
    kind: Literal["raw", "jpeg"] = "raw"
    """raw (NumPy arrays of pixels) or jpeg (tar shards in WebDataset's convention, quality 95)."""
    fit: Literal["stretch", "crop"] = "stretch"
    """stretch (the whole image to a square, as Caffe did) or crop (the square in the middle)."""
    bad_images: Literal["fail", "skip"] = "fail"
    """Action for files that cannot be decoded: fail (name them all and stop) or skip (leave them out and list them)."""
    device: Literal["cpu", "cuda"] | None = None
    """Device that decodes; by default a GPU where there is one."""

    def run(self, console: Console) -> int:
        from fasttransfer.core import devices
        from fasttransfer.pipelines.layouts import list_images
        from fasttransfer.pipelines.prepare import StoreChoices, prepare_into
        from fasttransfer.study.recipe import default_recipe, load_recipe

        if self.size is not None and self.recipe is not None:
            raise InputError(f"--size {self.size} and --recipe {self.recipe} both say the size: drop one")
        device, log = devices.choose_device(self.device), printer(console)
        listing = list_images(self.source)
        size = self.size
        if size is None:
            recipe = load_recipe(self.recipe or default_recipe(None, is_small=listing.layout != "ilsvrc12"))
            size = recipe.network.store
            log(f"{size} x {size} pixels, for recipe {recipe.name}")
        choices = StoreChoices(kind=self.kind, fit=self.fit, bad_images=self.bad_images, device=device)
        store = prepare_into(listing, self.store, size=size, log=log, **choices)
        log(f"store: {store.folder}")
        return 0


@dataclass(frozen=True)
class DataVerify:
    """Read a whole store, compare it with its checksums, and decode every image of a jpeg store.

    Names the files that differ and the images in them.

    For example:

        fasttransfer data verify stores/ilsvrc12
    """

    store: Annotated[Path, tyro.conf.Positional]
    """Folder of the store."""

    def run(self, console: Console) -> int:
        from fasttransfer.pipelines.store import Store
        from fasttransfer.pipelines.verification import verify

        store, log = Store.open(self.store), printer(console)
        verify(store, log)
        log(f"{store.folder}: all {len(store.train) + len(store.val):,} images are as they were written")
        return 0


@dataclass(frozen=True)
class DataBuiltin:
    """Render the built-in images, if they are not there yet, and print where they are.

    They are synthetic: 16 natural and 16 man-made classes, drawn by this program, for trying a whole study without a
    data set.

    For example:

        fasttransfer data builtin
    """

    def run(self, console: Console) -> int:
        from fasttransfer.study import images
        from fasttransfer.study.recipe import load_recipe

        log = printer(console)
        log(images.builtin_store(load_recipe("mini").network.store, log).manifest["source"])
        return 0


@dataclass(frozen=True)
class Data:
    """Inspect images and prepare them before training."""

    command: (
        Annotated[DataInspect, tyro.conf.subcommand("inspect")]
        | Annotated[DataPrepare, tyro.conf.subcommand("prepare")]
        | Annotated[DataVerify, tyro.conf.subcommand("verify")]
        | Annotated[DataBuiltin, tyro.conf.subcommand("builtin")]
    )

    def run(self, console: Console) -> int:
        return self.command.run(console)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())
