"""Features of any stored network of a study, as tensors: what a notebook and `fasttransfer probe` read.

An image is prepared exactly as the network saw it in training: the store's pixels, minus the mean image of the task
that its first layer was trained on, times the recipe's scale, in the study's precision. What comes out is what the
cache keeps, bfloat16, to the same bits whether it is read or computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fasttransfer.core import machine, tensor_files
from fasttransfer.core.errors import InputError
from fasttransfer.core.files import cache_folder
from fasttransfer.core.progress import Log, format_bytes
from fasttransfer.core.tensor_files import CorruptFileError
from fasttransfer.features import cache
from fasttransfer.features.cache import CacheEntry, EntryInfo
from fasttransfer.features.cache_entry import print_warning
from fasttransfer.features.cache_key import CacheKey, images_digest, make_key
from fasttransfer.features.fill import fill_entries
from fasttransfer.networks import inputs
from fasttransfer.networks.caffenet import CaffeNet
from fasttransfer.networks.prefix import DEEPEST, kept_cut, rounded_cuts
from fasttransfer.pipelines import prepare
from fasttransfer.pipelines.choose_feed import HOST_SHARE
from fasttransfer.pipelines.store import Store
from fasttransfer.pipelines.streams import Feed, Sweep, TaskImages, select_task_images
from fasttransfer.pipelines.views import COUNTS, View, list_views
from fasttransfer.study import images, paths, records
from fasttransfer.study.cells import TASKS, Cell
from fasttransfer.study.configuration import BUILTIN, Study
from fasttransfer.study.images import study_feed
from fasttransfer.study.paths import mean_file, weights_file

Part = Literal["train", "val"]

CUTS = range(1, 8)


@dataclass(frozen=True, eq=False)
class Features:
    """Features of N images in V views each.

    Attributes:
        values: (N, V, C, H, W) at cuts 1 to 5, (N, V, E) at 6 and 7; bfloat16, on the CPU.
        ids: (N,) int64, each image's place in the list of its part and task; labels: (N,) int64, places in `classes`.
        views: the corner in pixels and the mirroring of each view.
        network: e.g. "baseA.s0".
    """

    values: Tensor
    ids: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    views: tuple[View, ...]
    network: str
    cut: int

    def flat(self) -> Tensor:
        """(N * V, E), the views of an image below each other."""
        return self.values.flatten(0, 1).flatten(1)


def of(
    run: str | Path,
    network: str = "baseA",
    cut: int = 5,
    *,
    part: Part = "val",
    task: str | None = None,
    data: str | Path | None = None,
    views: int = 1,
    rows: Sequence[int] | None = None,
    keep: bool = False,
) -> Features:
    """Features of a network of the study in folder `run`, all in memory.

    Read from the cache where it has them, else computed.

    Args:
        network: its name, as "baseA" or "A3B+"; with a seed, as "baseA.s1", where it is not the study's first.
        cut: 1 to 7: the output of that stage. Cut 7 is computed without dropout, from cut 6.
        part: "train" or "val".
        task: the study's task whose images they are, by default the one that the network was trained on.
        data: other images, all their classes: "builtin", a source or a store, as `grid --data` takes it; a source is
            prepared when it was not yet.
        views: 1 (the centre crop), 2 (with its mirror) or 10 (corners and centre with mirrors).
        rows: only these images, by their places in the list.
        keep: compute the features of all images of the list and put them into the cache, unless they are there; where
            it cannot be written, that is said.

    Raises:
        InputError: no such study, network, cut, task or images; the network is not trained; too large for memory.
    """
    asked = open_network(run, network, task=task, data=data, views=views)
    ids = asked.ids(part, rows)
    _need_memory(asked, cut, len(ids))
    return read_features(asked, [cut], part, ids, keep=keep)[cut]


def batches(
    run: str | Path,
    network: str = "baseA",
    cut: int = 5,
    *,
    part: Part = "val",
    task: str | None = None,
    data: str | Path | None = None,
    views: int = 1,
    rows: Sequence[int] | None = None,
    keep: bool = False,
    size: int = 256,
) -> Iterator[Features]:
    """As `of`, `format_bytes` images at a time: for what does not fit into memory."""
    if size < 1:
        raise InputError(f"size {size}: at least 1 image at a time is needed")
    asked = open_network(run, network, task=task, data=data, views=views)
    for ids in asked.ids(part, rows).split(size):
        yield read_features(asked, [cut], part, ids, keep=keep)[cut]


# -- what is asked for ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class FeatureRequest:
    """A stored network, and the images that it is shown.

    Attributes:
        cell: the network; weights: its own, float32; mean: (S, S, 3) float32, the image that is subtracted.
        task: "A", "B", or what the images are called that are not the study's; data: the same for `EntryInfo`.
        digest: of the store; decodes: whether its pixels are decoded on the way.
        device: that computes.
    """

    study: Study
    folder: Path
    cell: Cell
    weights: Mapping[str, Tensor]
    mean: Tensor
    data: str
    task: str
    classes: tuple[str, ...]
    digest: str
    decodes: bool
    images: Mapping[Part, TaskImages]
    views: tuple[View, ...]
    device: torch.device

    def ids(self, part: Part, rows: Sequence[int] | None = None) -> Tensor:
        """(N,) int64: `rows`, or all of a part."""
        if part not in self.images:
            raise InputError(f"part {part!r}: choose train or val")
        count = len(self.images[part])
        ids = torch.arange(count) if rows is None else torch.as_tensor(rows, dtype=torch.int64)
        if not len(ids):
            raise InputError("rows: name at least one image")
        if not 0 <= int(ids.min()) <= int(ids.max()) < count:
            raise InputError(
                f"rows {int(ids.min())} to {int(ids.max())}: the {part} list of {self.task} has {count} images, "
                f"0 to {count - 1}"
            )
        return ids

    def bytes(self, cut: int, count: int) -> int:
        """What the features of so many images take in memory."""
        return 2 * count * len(self.views) * prod(self.study.recipe.geometry.cut_shape(cut))


def open_network(
    run: str | Path,
    network: str,
    *,
    task: str | None = None,
    data: str | Path | None = None,
    views: int = 1,
    log: Log = print_warning,
) -> FeatureRequest:
    """Reads a stored network, its mean image and the list of images, which are prepared where they are not.

    The arguments are those of `of`.

    Raises:
        InputError: as there.
    """
    folder = Path(run)
    recorded = records.read_results(folder)
    study = Study.read(paths.study_file(folder))
    cell = _cell(folder, study, network)
    state = next((r for r in recorded.results if (r.name, r.seed) == (cell.name, cell.seed)), None)
    if state is None or state.state != "done":
        how = "planned" if state is None else state.state
        raise InputError(f"{folder}: {cell.label} is {how}, not done: train it to its end with grid, or name another")
    try:
        trained, _ = tensor_files.load(weights_file(folder, cell))
    except (FileNotFoundError, CorruptFileError) as error:
        raise InputError(
            f"{folder}: the weights of {cell.label} are missing or damaged ({error}): the same grid command trains "
            "them again"
        ) from None
    geometry = study.recipe.geometry
    if views not in COUNTS:
        raise InputError(f"views {views}: choose 1 (the centre), 2 (with its mirror) or 10 (corners and centre)")
    if data is not None:
        if task is not None:
            raise InputError(f"task {task} is one of the study's, {data} are other images: name one of them")
        store, where = _other_store(str(data), study, log)
        task, classes = Path(where).name, store.classes
        each_class = None
    else:
        store, where = _own_store(folder, recorded, study, log), study.data
        task = task or cell.target
        if task not in TASKS:
            raise InputError(f"task {task}: choose A or B")
        classes, each_class = tuple(recorded.facts["classes"][task]), study.per_class
    store.require_both_parts(classes)
    return FeatureRequest(
        study=study,
        folder=folder,
        cell=cell,
        weights=trained,
        mean=torch.from_numpy(np.load(mean_file(folder, cell.mean_of))),
        data=where,
        task=task,
        classes=classes,
        digest=store.digest,
        decodes=store.kind == "jpeg",
        images={
            "train": select_task_images(store, store.train, classes, each_class),
            "val": select_task_images(store, store.val, classes),
        },
        views=list_views(views, geometry.store - geometry.crop),
        device=torch.device(study.device if study.device == "cpu" or torch.cuda.is_available() else "cpu"),
    )


def _cell(folder: Path, study: Study, network: str) -> Cell:
    """The network that is called `network`, with its seed or without."""
    found = [cell for cell in study.cells() if network in (cell.label, cell.name)]
    if not found:
        names = sorted({cell.name for cell in study.cells()}, key=lambda name: (not name.startswith("base"), name))
        raise InputError(
            f"{folder}: has no network {network}: choose among {', '.join(names)}, with a seed as in "
            f"{names[0]}.s{study.seeds[0]} where there are several"
        )
    return next((cell for cell in found if cell.seed == study.seeds[0]), found[0])


def _own_store(folder: Path, recorded: records.StudyResults, study: Study, log: Log) -> Store:
    """The images that the study was trained on, prepared again where the cache has lost them."""
    found = images.find_source(study.data)
    store = _prepared(found, study, recorded.facts["store"]["kind"], log)
    if store.digest != study.images:
        raise InputError(
            f"{folder}: {study.data} does not hold the images that the study was trained on any more: put them back, "
            "or name images as data"
        )
    return store


def _other_store(data: str, study: Study, log: Log) -> tuple[Store, str]:
    found = images.find_source(data)
    store, side = _prepared(found, study, "raw", log), study.recipe.geometry.store
    if store.size != side:
        raise InputError(
            f"{data} holds {store.size} x {store.size} images, the network needs {side}: prepare them again with "
            f"--size {side}"
        )
    return store, found.where


def _prepared(found: images.ImageSource, study: Study, kind: Literal["raw", "jpeg"], log: Log) -> Store:
    if found.store is not None:
        return found.store
    side = study.recipe.geometry.store
    if found.where == BUILTIN:
        from fasttransfer.study.images import builtin_store  # which needs this package

        return builtin_store(side, log, kind)
    assert found.listing is not None
    return prepare.prepare(
        found.listing, size=side, cache=cache_folder(), kind=kind, bad_images=study.bad_images, log=log
    )


def _need_memory(asked: FeatureRequest, cut: int, count: int) -> None:
    """Refuses what would not fit into memory."""
    _check_cut(cut)
    needed, free = asked.bytes(cut, count), machine.free_memory()
    if free is not None and needed > HOST_SHARE * free:
        raise InputError(
            f"features of {count:,} images in {len(asked.views)} views at cut {cut} take {format_bytes(needed)}, "
            f"{format_bytes(free)} of memory are free: ask for some rows, or take them batch by batch from "
            "fasttransfer.features.batches"
        )


def _check_cut(cut: int) -> None:
    if cut not in CUTS:
        raise InputError(f"cut {cut}: choose among 1 to 7")


# -- reading and computing ------------------------------------------------------------------------------------------


def read_features(
    asked: FeatureRequest,
    cuts: Sequence[int],
    part: Part,
    ids: Tensor,
    *,
    keep: bool = False,
    log: Log = print_warning,
) -> dict[int, Features]:
    """Features at some cuts of the images `ids`: what is missing is computed in one forward pass for all cuts.

    Args:
        ids: (N,) int64, see `FeatureRequest.ids`; keep: as `of`.

    Raises:
        InputError: no such cut.
    """
    for cut in cuts:
        _check_cut(cut)
    root, kept = cache.cache_root(), sorted({kept_cut(cut) for cut in cuts})
    with _as_in_training(asked):
        entries = {cut: _find(root, asked, part, cut, log) for cut in kept}
        missing = [cut for cut in kept if entries[cut] is None]
        if keep and missing:
            try:
                _fill(root, asked, part, missing, log, lambda text: None)
            except InputError as error:
                log(f"features of {asked.cell.label} are not kept: {error}")
            entries |= {cut: _find(root, asked, part, cut, log) for cut in missing}
        there = {cut: _read(entry, asked, ids, log) for cut, entry in entries.items() if entry is not None}
        values = {cut: found for cut, found in there.items() if found is not None}
        values |= _compute(asked, part, ids, [cut for cut in kept if cut not in values])
        if DEEPEST + 1 in cuts:
            values[DEEPEST + 1] = _last_stage(asked, values[DEEPEST])
    shown = asked.images[part]
    labels = torch.from_numpy(shown.labels)[ids]
    return {
        cut: Features(
            values[cut].unflatten(0, (len(ids), len(asked.views))),
            ids,
            labels,
            asked.classes,
            asked.views,
            asked.cell.label,
            cut,
        )
        for cut in cuts
    }


def keep_features(
    asked: FeatureRequest, cuts: Sequence[int], part: Part, *, log: Log = cache.print_warning, progress: Log
) -> list[CacheEntry]:
    """Puts features of all images of a part into the cache; what is missing is computed in one pass for all cuts.

    Args:
        cuts: 1 to 7, of which the last needs cut 6.
        progress: told how far it is.

    Returns:
        The entries, one a cut that is kept.

    Raises:
        InputError: no such cut; the cache cannot be written, or its disk is full.
    """
    for cut in cuts:
        _check_cut(cut)
    root, kept = cache.cache_root(), sorted({kept_cut(cut) for cut in cuts})
    with _as_in_training(asked):
        _fill(root, asked, part, kept, log, progress)
        found = [cache.find_entry(root, _key(asked, part, cut, asked.views), log) for cut in kept]
    return [entry for entry in found if entry is not None]


@contextmanager
def _as_in_training(asked: FeatureRequest) -> Iterator[None]:
    """What rounding depends on in a process, as the study's workers set it, for as long as features are computed."""
    threads, deterministic = torch.get_num_threads(), torch.backends.cudnn.deterministic
    torch.set_num_threads(asked.study.threads)
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.cudnn.deterministic = deterministic


def _key(asked: FeatureRequest, part: Part, cut: int, views: Sequence[View]) -> CacheKey:
    return make_key(
        asked.study,
        asked.weights,
        asked.mean,
        cut,
        images_digest(asked.digest, part, asked.images[part].rows),
        views,
        device=asked.device.type,
        decodes=asked.decodes,
    )


def _find(root: Path, asked: FeatureRequest, part: Part, cut: int, log: Log) -> CacheEntry | None:
    """The entry that has these features, be it among more views: a shorter list is the beginning of a longer one."""
    geometry = asked.study.recipe.geometry
    for count in COUNTS:
        if count >= len(asked.views):
            key = _key(asked, part, cut, list_views(count, geometry.store - geometry.crop))
            try:
                if entry := cache.find_entry(root, key, log):
                    return entry
            except InputError as error:
                log(f"cut {cut} is computed: {error}")
    return None


def _read(entry: CacheEntry, asked: FeatureRequest, ids: Tensor, log: Log) -> Tensor | None:
    """(N * V, ...) from an entry; None where it proves damaged, which is said."""
    numbers = ids[:, None] * entry.views + torch.arange(len(asked.views))
    try:
        with entry.open(log=log) as reader:
            cache.count_use(entry)
            return reader.read(numbers.view(-1))
    except CorruptFileError as error:
        cache.quarantine(entry, error, log)
    except InputError as error:
        log(f"cut {entry.key.cut} is computed: {error}")
    return None


def _fill(root: Path, asked: FeatureRequest, part: Part, cuts: Sequence[int], log: Log, progress: Log) -> None:
    about = EntryInfo(asked.cell.label, str(asked.folder), asked.data, part, asked.task, asked.classes)
    shown = asked.images[part]
    fill_entries(
        root,
        [(_key(asked, part, cut, asked.views), about) for cut in cuts],
        shown,
        _network(asked),
        _sweep(asked, len(shown)),
        lambda sweep: _feed(asked, shown, sweep),
        asked.cell.mean_of,
        log=log,
        progress=progress,
        stop=lambda: False,
    )


def _compute(asked: FeatureRequest, part: Part, ids: Tensor, cuts: Sequence[int]) -> dict[int, Tensor]:
    """cut -> (N * V, ...) bfloat16 on the CPU, without the cache."""
    if not cuts:
        return {}
    whole = asked.images[part]
    shown = TaskImages(whole.part, whole.rows[ids.numpy()], whole.labels[ids.numpy()])
    sweep, net = _sweep(asked, len(shown)), _network(asked)
    geometry = asked.study.recipe.geometry
    found = {}
    for cut in cuts:
        shape = geometry.cut_shape(cut)
        format = torch.channels_last if len(shape) == 3 else torch.contiguous_format
        found[cut] = torch.empty((sweep.records, *shape), dtype=torch.bfloat16, memory_format=format)
    with closing(_feed(asked, shown, sweep)) as feed:
        for step in range(sweep.steps):
            at = step * sweep.batch
            made = rounded_cuts(net, feed.train(step).images[asked.cell.mean_of], cuts, sweep.batch)
            for cut, values in found.items():
                values[at : at + sweep.batch] = made[cut][: sweep.records - at]
    return found


def _last_stage(asked: FeatureRequest, cut6: Tensor) -> Tensor:
    """Stage 7 without dropout, of (N, E) at cut 6."""
    net, batch = _network(asked), asked.study.recipe.batch
    dtype = inputs.dtype_of(asked.study.precision)
    parts = []
    with torch.no_grad():
        for x in cut6.split(batch):
            filled = torch.cat([x, x.new_zeros(batch - len(x), x.shape[1])]) if len(x) < batch else x
            made = net(filled.to(asked.device, dtype), start=DEEPEST, stop=DEEPEST + 1)
            parts.append(made[: len(x)].to("cpu", torch.bfloat16))
    return torch.cat(parts)


def _network(asked: FeatureRequest) -> CaffeNet:
    study = asked.study
    net = CaffeNet(study.recipe.geometry, len(asked.weights["fc8.bias"]), inputs.dtype_of(study.precision))
    net.load(asked.weights)
    return net.to(asked.device).requires_grad_(False)


def _sweep(asked: FeatureRequest, count: int) -> Sweep:
    geometry = asked.study.recipe.geometry
    return Sweep(0, 0, count, asked.study.recipe.batch, geometry.store - geometry.crop, asked.views)


def _feed(asked: FeatureRequest, shown: TaskImages, sweep: Sweep) -> Feed:
    return study_feed(asked.study, asked.device, None, shown, shown, sweep, {asked.cell.mean_of: asked.mean})
