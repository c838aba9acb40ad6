"""`fasttransfer cache …`: what is kept, whether it is whole, how it goes, and how it leaves for elsewhere."""

from __future__ import annotations

import re
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console
from rich.text import Text

from fasttransfer.core.errors import InputError
from fasttransfer.core.tables import plain_table
from fasttransfer.study.configuration import Choices

if TYPE_CHECKING:  # PyTorch is not loaded to print a manual page
    from fasttransfer.features.cache import CacheEntry

_DIGITS = 8  # of a digest, where a person reads it
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


@dataclass(frozen=True)
class CacheBuild:
    """Compute features of a trained network and keep them, all cuts in one forward pass; what is there stays.

    Training images are shown in the views, validation images in the first of them, as a study does.

    For example, all that cells on task B read from base A:

        fasttransfer cache build runs/builtin-natural-manmade --network baseA --task B --views 10
    """

    study: Annotated[Path, tyro.conf.Positional]
    """Folder of the study, the --out of grid."""
    network: str = "baseA"
    """A network of it, e.g. baseA, A3B+ or, of another seed, baseA.s1."""
    cuts: tuple[int, ...] = (1, 2, 3, 4, 5, 6)
    """Which cuts, 1 to 6; for 7 it is cut 6 that is kept."""
    task: str | None = None
    """The task whose images they are, A or B; by default the one that the network was trained on."""
    views: int = 10
    """1 (the centre crop), 2 (with its mirror) or 10 (corners and centre with mirrors)."""

    def run(self, console: Console) -> int:
        from fasttransfer.core.progress import format_bytes
        from fasttransfer.features import network_features

        def log(sentence: str) -> None:
            console.print(Text(sentence), soft_wrap=True)

        shown = network_features.open_network(self.study, self.network, task=self.task, views=self.views, log=log)
        centre = replace(shown, views=shown.views[:1])
        with console.status("") as status:
            kept = network_features.keep_features(shown, self.cuts, "train", log=log, progress=status.update)
            kept += network_features.keep_features(centre, self.cuts, "val", log=log, progress=status.update)
        for entry in kept:
            log(f"{entry.folder.name[:_DIGITS]}: {_what(entry)}, {format_bytes(entry.bytes)}, {_share(entry)} of dense")
        return 0


@dataclass(frozen=True)
class CacheList:
    """List the features that are kept: of which network, cut, images and views, their size and their use.

    The share is that of the same features without packing, as bfloat16. Cells with n = 7 use the features of cut 6.

    For example:

        fasttransfer cache list
    """

    def run(self, console: Console) -> int:
        from fasttransfer.core.progress import format_bytes
        from fasttransfer.features import cache

        root, said = cache.cache_root(), list[str]()
        there = sorted(cache.list_entries(root, said.append), key=lambda entry: -entry.use.last)
        rows = plain_table("entry", "features", "of", "size", "share", "used", "last")
        for entry in there:
            hits, last = entry.use
            rows.add_row(
                entry.folder.name[:_DIGITS],
                f"{entry.about.network} cut {entry.key.cut}",
                _images(entry),
                format_bytes(entry.bytes),
                _share(entry),
                str(hits),
                _ago(last),
            )
        if there:
            console.print(rows)
        for sentence in said:
            console.print(Text(sentence), soft_wrap=True)
        for folder in cache.list_damaged(root):
            console.print(Text(f"{folder}: damaged, set aside: cache prune removes it"), soft_wrap=True)
        total = f"{len(there)} {'entry' if len(there) == 1 else 'entries'}, {format_bytes(sum(e.bytes for e in there))}"
        console.print(Text(f"{total} in {root}"), soft_wrap=True)
        return 0


@dataclass(frozen=True)
class CacheShow:
    """Say all that is known of an entry: what it is, and what its key is made of.

    For example:

        fasttransfer cache show 3fa2
    """

    entry: Annotated[str, tyro.conf.Positional]
    """The entry's name in list, or as much of it as tells it from the others."""

    def run(self, console: Console) -> int:
        from fasttransfer.core.progress import format_bytes
        from fasttransfer.features.cache_key import FORMAT

        entry = _one(self.entry)
        key, (hits, last) = entry.key, entry.use
        rows = plain_table("", "")
        facts = {
            "entry": entry.folder.name,
            "folder": str(entry.folder),
            "network": entry.about.network,
            "study": entry.about.study,
            "images": f"{_images(entry)}, {len(entry.about.classes)} classes",
            "cut": f"{key.cut}: {' x '.join(map(str, entry.shape))}",
            "size": f"{format_bytes(entry.bytes)} in {len(entry.shards)} shards, {_share(entry)} of "
            f"{format_bytes(entry.dense)}",
            "kept": "packed" if entry.packed else "dense",
            "used": f"{hits} times, last {_ago(last)}",
            "views": "; ".join(f"{top},{left}{' mirrored' if mirror else ''}" for top, left, mirror in key.views),
            "computed": f"{key.precision} on {key.device}, {key.threads} threads, batches of {key.batch}",
            "geometry": key.geometry.name,
            "weights": f"{key.prefix} (digest)",
            "mean": f"{key.mean} (digest), differences times {key.scale:g}",
            "list": f"{key.images} (digest)",
            **{name: value for name, value in key.versions.items() if value},
            "entry.json": f"{entry.checksum} (checksum), format {FORMAT}",
        }
        for name, value in facts.items():
            rows.add_row(name, Text(value, overflow="fold"))
        console.print(rows)
        return 0


@dataclass(frozen=True)
class CacheVerify:
    """Read entries back, all of them unless some are named, and set aside those that are damaged.

    Exit code 1 says that there were such.

    For example:

        fasttransfer cache verify
    """

    entries: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Names in list, or as much of each as tells it from the others."""

    def run(self, console: Console) -> int:
        from fasttransfer.core.progress import format_bytes
        from fasttransfer.core.tensor_files import CorruptFileError
        from fasttransfer.features import cache
        from fasttransfer.features import cache_entry as on_disk

        folders = [_folder(name) for name in self.entries] or cache.list_folders(cache.cache_root())
        wrong, bytes_ = 0, 0
        for folder in folders:

            def log(sentence: str) -> None:
                console.print(Text(sentence), soft_wrap=True)

            try:
                entry = on_disk.find_entry(folder, log)
                if entry is None:
                    wrong += 1
                    continue
                cache.verify_entry(entry, log)
            except CorruptFileError:  # which was said
                wrong += 1
            except InputError as error:
                log(str(error))
                wrong += 1
            else:
                bytes_ += entry.bytes
        good = len(folders) - wrong
        which = "entry is as it was" if good == 1 else "entries are as they were"
        what = f"{good} {which} written ({format_bytes(bytes_)})"
        console.print(Text(f"{what}, {wrong} cannot be used" if wrong else what), soft_wrap=True)
        return 1 if wrong else 0


@dataclass(frozen=True)
class CachePrune:
    """Remove entries: those that are named, or those that were not used for longest until the rest is small enough.

    What was set aside as damaged goes as well, and what killed processes left. A process that is reading an entry reads
    on, and the disk gets its bytes back when that ends.

    For example:

        fasttransfer cache prune --max-size 10GB
    """

    entries: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Names in list, or as much of each as tells it from the others."""
    max_size: str | None = None
    """What may stay, e.g. 10GB, 500MB or 0."""

    def run(self, console: Console) -> int:
        from fasttransfer.core.progress import format_bytes
        from fasttransfer.features import cache

        if not self.entries and self.max_size is None:
            raise InputError("cache prune: name entries, or say what may stay, e.g. --max-size 10GB")
        most = None if self.max_size is None else _bytes(self.max_size)
        root = cache.cache_root()
        folders = [_folder(name) for name in self.entries]
        for folder in folders:
            gone = cache.remove_folder(folder)
            told = "removed" if gone else "is being made: left alone"
            console.print(Text(f"{folder.name[:_DIGITS]}: {told}"), soft_wrap=True)
        if most is None:
            cache.remove_leftovers(root)
        else:
            for entry in cache.prune(root, most):
                told = f"{entry.folder.name[:_DIGITS]}: removed ({_what(entry)}, {format_bytes(entry.bytes)})"
                console.print(Text(told), soft_wrap=True)
        left = sum(entry.bytes for entry in cache.list_entries(root))
        console.print(Text(f"{format_bytes(left)} in {root}"), soft_wrap=True)
        return 0


@dataclass(frozen=True)
class CacheExport:
    """Write the features of an entry for use elsewhere, with the ids and labels of the images and the views.

    To a .npy: features (images, views, ...) as float32, for NumPy has no bfloat16, and beside it -ids.npy,
    -labels.npy, -views.npy and a .json that names the classes. To a .safetensors: all in one file, features as
    bfloat16. Neither takes more memory than a few batches.

    For example:

        fasttransfer cache export 3fa2 features.safetensors
    """

    entry: Annotated[str, tyro.conf.Positional]
    """The entry's name in list, or as much of it as tells it from the others."""
    out: Annotated[Path, tyro.conf.Positional]
    """The file to write: a .npy or a .safetensors."""

    def run(self, console: Console) -> int:
        from fasttransfer.core.tensor_files import CorruptFileError
        from fasttransfer.features.export import export

        said: list[str] = []
        try:
            files = export(_one(self.entry), self.out, said.append)
        except CorruptFileError:
            raise InputError(f"{said[0]}: run again what made it") from None
        for path in files:
            console.print(Text(str(path)), soft_wrap=True)
        return 0


@dataclass(frozen=True)
class CachePlan(Choices):
    """Measure for every cut whether reading its features beats computing them here, and what they would take.

    The arguments are those of grid, which decides so by itself; its --dry-run prints this table too. Random weights
    stand for the networks, which leave fewer zeros than trained ones.

    For example:

        fasttransfer cache plan --views 10 --data tiny-imagenet-200 --classes 40
    """

    def run(self, console: Console) -> int:
        from fasttransfer.training import study_plan, time_estimate

        if self.views is None:
            raise InputError("cache plan: where any crop is shown none can be kept: give --views 1, 2 or 10")
        plan = study_plan.make_plan(self)
        time_estimate.print_features(plan, plan.cells(), "auto", console)
        return 0


@dataclass(frozen=True)
class CacheWhere:
    """Print the folder of the cache, what it holds and what the disk has free.

    FASTTRANSFER_CACHE names another folder; there are prepared images in it as well.

    For example:

        fasttransfer cache where
    """

    def run(self, console: Console) -> int:
        from fasttransfer.core.progress import format_bytes
        from fasttransfer.features import cache

        root = there = cache.cache_root()
        while not there.exists() and there != there.parent:
            there = there.parent
        rows = plain_table("", "")
        rows.add_row("folder", Text(str(root), overflow="fold"))
        rows.add_row("features", format_bytes(sum(entry.bytes for entry in cache.list_entries(root))))
        rows.add_row("free", format_bytes(shutil.disk_usage(there).free))
        console.print(rows)
        return 0


@dataclass(frozen=True)
class Cache:
    """Look at, check, remove and export the frozen features that studies with --views and probe keep."""

    command: (
        Annotated[CacheBuild, tyro.conf.subcommand("build")]
        | Annotated[CacheList, tyro.conf.subcommand("list")]
        | Annotated[CacheShow, tyro.conf.subcommand("show")]
        | Annotated[CacheVerify, tyro.conf.subcommand("verify")]
        | Annotated[CachePrune, tyro.conf.subcommand("prune")]
        | Annotated[CacheExport, tyro.conf.subcommand("export")]
        | Annotated[CachePlan, tyro.conf.subcommand("plan")]
        | Annotated[CacheWhere, tyro.conf.subcommand("where")]
    )

    def run(self, console: Console) -> int:
        return self.command.run(console)


def _folder(name: str) -> Path:
    """The folder of the entry whose name begins so, whatever is in it."""
    from fasttransfer.features import cache

    found = [folder for folder in cache.list_folders(cache.cache_root()) if folder.name.startswith(name)]
    if not found:
        raise InputError(f"{name}: no entry of the cache begins so: see fasttransfer cache list")
    if len(found) > 1:
        names = ", ".join(folder.name[: max(_DIGITS, len(name) + 2)] for folder in found[:3])
        raise InputError(f"{name}: {len(found)} entries begin so ({names}): give more digits")
    return found[0]


def _one(name: str) -> CacheEntry:
    """The entry whose name begins so."""
    from fasttransfer.features import cache_entry as on_disk

    folder, said = _folder(name), list[str]()
    entry = on_disk.find_entry(folder, said.append)
    if entry is None:
        raise InputError(said[0] if said else f"{folder}: was removed")
    return entry


def _what(entry: CacheEntry) -> str:
    return f"{entry.about.network} cut {entry.key.cut}, {_images(entry)}"


def _images(entry: CacheEntry) -> str:
    about = entry.about
    views = f"{entry.views} view{'s' if entry.views > 1 else ''}"
    return f"{entry.images:,} {about.part} of {about.data} {about.task} in {views}"


def _share(entry: CacheEntry) -> str:
    return f"{entry.bytes / entry.dense:.0%}" if entry.dense else "–"


def _ago(seconds: float) -> str:
    from fasttransfer.core.progress import format_duration

    return f"{format_duration(max(0.0, time.time() - seconds))} ago"


def _bytes(text: str) -> int:
    """10GB, 500 MB, 1.5T, 0 -> bytes; units are decimal."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", text.strip().upper())
    if not found:
        raise InputError(f"--max-size {text}: is no size: write it as 10GB, 500MB or 0")
    return int(float(found[1]) * _UNITS[found[2]])
