"""`fasttransfer data …`: look at images, and prepare them, before training on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.text import Text

from fasttransfer.cli.console import printer
from fasttransfer.core.errors import InputError
from fasttransfer.core.tables import plain_table


@dataclass(frozen=True)
class DataInspect:
    """Say what a source of images or a prepared store holds: layout, classes, counts, sizes, bad files.

    For example, with a contact sheet of some images of some classes:

        fasttransfer data inspect tiny-imagenet-200 --sheet tiny.png
    """

    source: Annotated[Path, tyro.conf.Positional]
    """Folder or uncompressed tar of images, the folder of a store, or builtin."""
    sheet: Path | None = None
    """Draw a contact sheet into this file, a .png or a .jpg."""

    def run(self, console: Console) -> int:
        from fasttransfer.pipelines import contact_sheet
        from fasttransfer.pipelines.inspection import inspect, open_images
        from fasttransfer.study import images
        from fasttransfer.study.configuration import BUILTIN
        from fasttransfer.study.recipe import load_recipe

        if self.sheet is not None:
            contact_sheet.check_name(self.sheet)
        source = self.source
        if str(source) == BUILTIN:
            source = images.builtin_store(load_recipe("mini").geometry.store, printer(console)).folder
        opened = open_images(source)
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
        for part, count in found.images.items():
            spread = found.per_class[part]
            rows.add_row(part, f"{count:,} images, {spread.least} to {spread.most} a class, median {spread.median:g}")
        if found.widths and found.heights:
            sizes = " x ".join(f"{s.least}-{s.most} (median {s.median:g})" for s in (found.widths, found.heights))
            rows.add_row("pixels", sizes)
        rows.add_row("formats", _counts(found.formats))
        rows.add_row("modes", _counts(found.modes))
        rows.add_row("looked at", f"{found.sampled:,} images")
        for note in found.notes:
            rows.add_row("note", note)
        for path, reason in found.bad:
            rows.add_row("bad", f"{path}: {reason}")
        console.print(rows)
        if self.sheet is not None:
            contact_sheet.write_sheet(opened, self.sheet)
            console.print(Text(f"contact sheet: {self.sheet}"), soft_wrap=True)
        return 0


@dataclass(frozen=True)
class DataPrepare:
    """Decode every image of a source once and write a store, which a study reads at the speed of memory.

    An interrupted or killed prepare goes on when the same command is given again, and ends with the same files. Room on
    the disk is asked for first: raw takes 3 bytes per pixel, 262 GB for ILSVRC12 at 256 x 256; jpeg about a sixth.

    For example:

        fasttransfer data prepare ILSVRC2012 stores/ilsvrc12
    """

    source: Annotated[Path, tyro.conf.Positional]
    """Folder or uncompressed tar of images."""
    store: Annotated[Path, tyro.conf.Positional]
    """Folder to be made; a store of these images that is there already stays as it is."""
    recipe: str | None = None
    """Make the size fit this recipe of grid: caffe, fast, mini or a TOML file; by default the one that grid takes for
    these images."""
    size: int | None = None
    """Side of the stored images in pixels, instead of the recipe's."""
    kind: Literal["raw", "jpeg"] = "raw"
    """raw (NumPy arrays of pixels) or jpeg (tar shards in WebDataset's convention, quality 95)."""
    fit: Literal["stretch", "crop"] = "stretch"
    """stretch (the whole image, its aspect not kept, as Caffe did) or crop (the square in the middle)."""
    bad_images: Literal["fail", "skip"] = "fail"
    """What to do about files that cannot be decoded: name them all and stop, or leave them out and list them."""
    device: Literal["cpu", "cuda"] | None = None
    """Where to decode; by default a GPU where there is one."""

    def run(self, console: Console) -> int:
        from fasttransfer.core import devices
        from fasttransfer.pipelines.layouts import list_images
        from fasttransfer.pipelines.prepare import prepare_into
        from fasttransfer.study.recipe import default_recipe, load_recipe

        if self.size is not None and self.recipe is not None:
            raise InputError(f"--size {self.size} and --recipe {self.recipe} both say the size: drop one")
        device = devices.choose_device(self.device)
        listing = list_images(self.source)
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
            bad_images=self.bad_images,
            device=device,
            log=printer(console),
        )
        console.print(Text(f"store: {store.folder}"), soft_wrap=True)
        return 0


@dataclass(frozen=True)
class DataVerify:
    """Read a whole store back, compare it with what was written, and decode every image of a jpeg store.

    Names the files that differ and which images are in them.

    For example:

        fasttransfer data verify stores/ilsvrc12
    """

    store: Annotated[Path, tyro.conf.Positional]
    """Folder of the store."""

    def run(self, console: Console) -> int:
        from fasttransfer.pipelines.store import Store
        from fasttransfer.pipelines.verification import verify

        store = Store.open(self.store)
        verify(store, printer(console))
        images = len(store.train) + len(store.val)
        console.print(Text(f"{store.folder}: all {images:,} images are as they were written"), soft_wrap=True)
        return 0


@dataclass(frozen=True)
class DataBuiltin:
    """Render the built-in images, unless that is done, and say where the files are.

    They are synthetic: 16 natural and 16 man-made classes, drawn by this program, so that the whole study can be
    tried without a data set.

    For example:

        fasttransfer data builtin
    """

    def run(self, console: Console) -> int:
        from fasttransfer.study import images
        from fasttransfer.study.recipe import load_recipe

        store = images.builtin_store(load_recipe("mini").geometry.store, printer(console))
        console.print(Text(store.manifest["source"]), soft_wrap=True)
        return 0


@dataclass(frozen=True)
class Data:
    """Look at images, and prepare them, before training on them."""

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
