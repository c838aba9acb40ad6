"""`fasttransfer cache …`: fill the feature cache, list, verify, prune and export its entries."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console
from rich.text import Text

from fasttransfer.cli.console import print_facts, print_table, printer
from fasttransfer.core.errors import InputError
from fasttransfer.core.progress import format_bytes, format_duration
from fasttransfer.core.text import printable
from fasttransfer.study.configuration import Choices

if TYPE_CHECKING:  # printing --help does not load PyTorch
    from fasttransfer.features.cache_entry import CacheEntry

_DIGITS = 8  # of a digest, for people
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


@dataclass(frozen=True)
class CacheBuild:
    """Compute features of a trained network and keep them, all cuts in one forward pass; entries that are there stay.

    Training images are read in all views, validation images in the first one, as in a study.

    For example, all that cells on task B read from base A:

        fasttransfer cache build runs/builtin-natural-manmade --network baseA --task B --views 10
    """

    study: Annotated[Path, tyro.conf.Positional]
    """Folder of the study, the --out of grid."""
    network: str = "baseA"
    """A network of the study, e.g. baseA, A3B+ or, of another seed, baseA.s1."""
    cuts: tuple[int, ...] = (1, 2, 3, 4, 5, 6)
    """Cuts to keep, 1 to 6; for 7 cut 6 is kept."""
    task: str | None = None
    """The task whose images are read, A or B; by default the one that the network was trained on."""
    views: int = 10
    """1 (the centre crop), 2 (with its mirror) or 10 (corners and centre with mirrors)."""

    def run(self, console: Console) -> int:
        from fasttransfer.features import network_features

        log = printer(console)
        train = network_features.open_network(self.study, self.network, task=self.task, views=self.views, log=log)
        val = train.with_first_view()
        with console.status("") as status:

            def show(text: str) -> None:
                status.update(Text(printable(text)))

            entries = network_features.keep_features(train, self.cuts, "train", log=log, progress=show)
            entries += network_features.keep_features(val, self.cuts, "val", log=log, progress=show)
        for entry in entries:
            size = format_bytes(entry.bytes)
            log(f"{entry.folder.name[:_DIGITS]}: {_describe(entry)}, {size}, {_share(entry)} of dense")
        return 0


@dataclass(frozen=True)
class CacheList:
    """List the entries of the cache: network, cut, images and views, size and use.

    The share is the size relative to the same features without packing, as bfloat16. Cells with n = 7 use the features
    of cut 6.

    For example:

        fasttransfer cache list
    """

    def run(self, console: Console) -> int:
        from fasttransfer.features import cache

        root, errors, log = cache.cache_root(), list[str](), printer(console)
        entries = sorted(cache.list_entries(root, errors.append), key=lambda entry: -entry.use.last)
        rows = []
        for entry in entries:
            hits, last = entry.use
            name, features = entry.folder.name[:_DIGITS], f"{entry.info.network} cut {entry.key.cut}"
            size, share = format_bytes(entry.bytes), _share(entry)
            rows.append((name, features, _images(entry), size, share, str(hits), _ago(last)))
        if rows:
            print_table(console, ("entry", "features", "of", "size", "share", "used", "last"), rows)
        for error in errors:
            log(error)
        for folder in cache.list_damaged(root):
            log(f"{folder}: damaged, quarantined: cache prune removes it")
        count = f"{len(entries)} {'entry' if len(entries) == 1 else 'entries'}"
        log(f"{count}, {format_bytes(sum(entry.bytes for entry in entries))} in {root}")
        return 0


@dataclass(frozen=True)
class CacheShow:
    """Show all facts of an entry and its key.

    For example:

        fasttransfer cache show 3fa2
    """

    entry: Annotated[str, tyro.conf.Positional]
    """The entry's name in list, or as much of it as tells it from the others."""

    def run(self, console: Console) -> int:
        from fasttransfer.features.cache_key import FORMAT

        entry = _find_entry(self.entry)
        key, (hits, last) = entry.key, entry.use
        facts = {
            "entry": entry.folder.name,
            "folder": str(entry.folder),
            "network": entry.info.network,
            "study": entry.info.study,
            "images": f"{_images(entry)}, {len(entry.info.classes)} classes",
            "cut": f"{key.cut}: {' x '.join(map(str, entry.shape))}",
            "size": f"{format_bytes(entry.bytes)} in {len(entry.shards)} shards, {_share(entry)} of "
            f"{format_bytes(entry.dense)}",
            "stored": "packed" if entry.packed else "dense",
            "used": f"{hits} times, last {_ago(last)}",
            "views": "; ".join(f"{top},{left}{' mirrored' if mirror else ''}" for top, left, mirror in key.views),
            "computed": f"{key.precision} on {key.device}, {key.threads} threads, batches of {key.batch}",
            "architecture": str(key.network["network"]),
            "weights": f"{key.prefix} (digest)",
            "mean": f"{key.mean} (digest), differences times {key.scale:g}",
            "list": f"{key.images} (digest)",
            **{name: value for name, value in key.versions.items() if value},
            "entry.json": f"{entry.checksum} (checksum), format {FORMAT}",
        }
        print_facts(console, facts.items())
        return 0


@dataclass(frozen=True)
class CacheVerify:
    """Read entries back, all of them unless some are named, and quarantine those that are damaged.

    The exit code is 1 if there were any.

    For example:

        fasttransfer cache verify
    """

    entries: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Names in list, or as much of each as tells it from the others."""

    def run(self, console: Console) -> int:
        from fasttransfer.core.tensor_files import CorruptFileError
        from fasttransfer.features import cache
        from fasttransfer.features.cache_entry import find_in_folder

        folders = [_find_folder(name) for name in self.entries] or cache.list_folders(cache.cache_root())
        log, good, size = printer(console), 0, 0
        for folder in folders:
            try:
                if entry := find_in_folder(folder, log):
                    entry.verify(log)
                    good, size = good + 1, size + entry.bytes
            except CorruptFileError:
                pass  # logged
            except InputError as error:
                log(str(error))
        bad = len(folders) - good
        summary = f"{good} {'entry is as it was' if good == 1 else 'entries are as they were'} written"
        log(f"{summary} ({format_bytes(size)}){f', {bad} cannot be used' if bad else ''}")
        return 1 if bad else 0


@dataclass(frozen=True)
class CachePrune:
    """Remove entries: those that are named, or those that were not used for longest until the rest is small enough.

    Quarantined entries and leftovers of killed processes go as well. A process that is reading an entry reads on, and
    the disk gets its bytes back when that ends.

    For example:

        fasttransfer cache prune --max-size 10GB
    """

    entries: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Names in list, or as much of each as tells it from the others."""
    max_size: str | None = None
    """The size that may stay, e.g. 10GB, 500MB or 0."""

    def run(self, console: Console) -> int:
        from fasttransfer.features import cache

        if not self.entries and self.max_size is None:
            raise InputError("cache prune: name entries, or say what may stay, e.g. --max-size 10GB")
        most = None if self.max_size is None else _parse_size(self.max_size)
        root, log = cache.cache_root(), printer(console)
        for folder in [_find_folder(name) for name in self.entries]:
            outcome = "removed" if cache.remove_entry(folder) else "is being made: left alone"
            log(f"{folder.name[:_DIGITS]}: {outcome}")
        if most is None:
            cache.remove_leftovers(root)
        else:
            for entry in cache.prune(root, most):
                log(f"{entry.folder.name[:_DIGITS]}: removed ({_describe(entry)}, {format_bytes(entry.bytes)})")
        log(f"{format_bytes(sum(entry.bytes for entry in cache.list_entries(root)))} in {root}")
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

        lines: list[str] = []
        try:
            files = export(_find_entry(self.entry), self.out, lines.append)
        except CorruptFileError:
            raise InputError(f"{lines[0]}: run again what made it") from None
        for path in files:
            printer(console)(str(path))
        return 0


@dataclass(frozen=True)
class CachePlan(Choices):
    """Measure for every cut whether reading its features is faster than computing them here, and their size.

    The arguments are those of grid, which decides by the same rule; its --dry-run prints this table too. Random weights
    stand for the networks; they leave fewer zeros than trained ones.

    For example:

        fasttransfer cache plan --views 10 --data tiny-imagenet-200 --classes 40
    """

    def run(self, console: Console) -> int:
        from fasttransfer.training import study_plan, time_estimate

        if self.views is None:
            raise InputError("cache plan: features of random crops cannot be kept: give --views 1, 2 or 10")
        plan = study_plan.make_plan(self)
        time_estimate.print_features(plan, plan.cells(), "auto", console)
        return 0


@dataclass(frozen=True)
class CacheWhere:
    """Print the folder of the cache, the size of its entries and the free space of the disk.

    FASTTRANSFER_CACHE names another folder, for prepared images as well.

    For example:

        fasttransfer cache where
    """

    def run(self, console: Console) -> int:
        from fasttransfer.features import cache
        from fasttransfer.pipelines.choose_feed import free_disk

        root = cache.cache_root()
        size = format_bytes(sum(entry.bytes for entry in cache.list_entries(root)))
        print_facts(console, [("folder", str(root)), ("features", size), ("free", format_bytes(free_disk(root)))])
        return 0


@dataclass(frozen=True)
class Cache:
    """Fill, list, verify, prune and export the cache of frozen features that studies with --views and probes share."""

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


def _find_folder(name: str) -> Path:
    """Return the folder of the entry whose name begins with `name`, readable or not."""
    from fasttransfer.features import cache

    folders = [folder for folder in cache.list_folders(cache.cache_root()) if folder.name.startswith(name)]
    if not folders:
        raise InputError(f"{name}: no entry of the cache begins so: see fasttransfer cache list")
    if len(folders) > 1:
        names = ", ".join(folder.name[: max(_DIGITS, len(name) + 2)] for folder in folders[:3])
        raise InputError(f"{name}: {len(folders)} entries begin so ({names}): give more digits")
    return folders[0]


def _find_entry(name: str) -> CacheEntry:
    """Return the entry whose name begins with `name`."""
    from fasttransfer.features.cache_entry import find_in_folder

    folder, lines = _find_folder(name), list[str]()
    entry = find_in_folder(folder, lines.append)
    if entry is None:
        raise InputError(lines[0] if lines else f"{folder}: was removed")
    return entry


def _describe(entry: CacheEntry) -> str:
    return f"{entry.info.network} cut {entry.key.cut}, {_images(entry)}"


def _images(entry: CacheEntry) -> str:
    info = entry.info
    views = f"{entry.views} view{'s' if entry.views > 1 else ''}"
    return f"{entry.images:,} {info.part} of {info.data} {info.task} in {views}"


def _share(entry: CacheEntry) -> str:
    return f"{entry.bytes / entry.dense:.0%}" if entry.dense else "–"


def _ago(seconds: float) -> str:
    return f"{format_duration(max(0.0, time.time() - seconds))} ago"


def _parse_size(text: str) -> int:
    """Return the bytes of 10GB, 500 MB, 1.5T or 0; units are decimal."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", text.strip().upper())
    if not match:
        raise InputError(f"--max-size {text}: is no size: write it as 10GB, 500MB or 0")
    return int(float(match[1]) * _UNITS[match[2]])
