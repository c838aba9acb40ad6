"""Features of any trained network of a study as tensors, for notebooks and `fasttransfer probe`.

An image is prepared exactly as the network saw it in training: the store's pixels minus the mean image of the task that
its first layer was trained on, times the recipe's scale, in the study's precision. The features are those that the
cache keeps, bfloat16, with the same bits whether they are read or computed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fasttransfer.core import machine, tensor_files
from fasttransfer.core.errors import InputError
from fasttransfer.core.progress import Log, format_bytes
from fasttransfer.core.tensor_files import CorruptFileError
from fasttransfer.features.cache_entry import CacheEntry, print_warning
from fasttransfer.features.feature_source import FeatureSource, Part, training_conditions
from fasttransfer.features.shards import empty_features
from fasttransfer.networks.precision import dtype_of
from fasttransfer.pipelines.choose_feed import HOST_SHARE
from fasttransfer.pipelines.store import Kind, Store
from fasttransfer.pipelines.streams import TaskImages, select_task_images
from fasttransfer.pipelines.views import COUNTS, View, list_views
from fasttransfer.study import images, paths, records
from fasttransfer.study.cells import TASKS, Cell
from fasttransfer.study.configuration import Study
from fasttransfer.study.feeds import load_means


@dataclass(frozen=True, eq=False)
class Features:
    """Features of N images in V views each.

    Attributes:
        values: (N, V, *shape) with the shape of the cut, (C, H, W) behind a convolution and (E,) behind a linear layer;
            bfloat16, on the CPU.
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
        """Return `values` as (N * V, E), the views of an image below each other."""
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
    """Return features of a network of the study in folder `run`, all in memory.

    They are read from the cache where it has them, and computed otherwise.

    Args:
        network: its name, as "baseA" or "A3B+"; with a seed, as "baseA.s1", where it is not the study's first.
        cut: number of a stage, from 1 to the last before the classifier: its output, without dropout.
        part: "train" or "val".
        task: the study's task whose images they are, by default the one that the network was trained on.
        data: other images, all their classes: "builtin", a source or a store, as `grid --data` takes it; a source is
            prepared if it was not yet.
        views: 1 (the centre crop), 2 (with its mirror) or 10 (corners and centre with mirrors).
        rows: only these images, by their places in the list.
        keep: compute the features of all images of the list and put them into the cache, unless they are there; a
            cache that cannot be written costs a warning.

    Raises:
        InputError: no such study, network, cut, task or images; the network is not trained; too large for memory.
    """
    request = open_network(run, network, task=task, data=data, views=views)
    ids = request.ids(part, rows)
    request.check_cuts([cut])
    needed, free = request.bytes(cut, len(ids)), machine.free_memory()
    if free is not None and needed > HOST_SHARE * free:
        raise InputError(
            f"features of {len(ids):,} images in {views} views at cut {cut} take {format_bytes(needed)}, "
            f"{format_bytes(free)} of memory are free: ask for some rows, or take them batch by batch from "
            "fasttransfer.features.batches"
        )
    return read_features(request, [cut], part, ids, keep=keep)[cut]


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
    """Yield the features of `of`, `size` images at a time, for what does not fit into memory."""
    if size < 1:
        raise InputError(f"size {size}: at least 1 image at a time is needed")
    request = open_network(run, network, task=task, data=data, views=views)
    for ids in request.ids(part, rows).split(size):
        yield read_features(request, [cut], part, ids, keep=keep)[cut]


@dataclass(frozen=True, eq=False, kw_only=True)
class FeatureRequest(FeatureSource):
    """A trained network of a study, and the images whose features are read."""

    cell: Cell

    def ids(self, part: Part, rows: Sequence[int] | None = None) -> Tensor:
        """Return `rows`, or all places in the list of a part: (N,) int64.

        Raises:
            InputError: no such part or rows.
        """
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
        """Return the bytes that the features of `count` images take in memory."""
        return 2 * count * len(self.views) * self.study.recipe.network.cut_values(cut)

    def check_cuts(self, cuts: Collection[int]) -> list[int]:
        """Return the cuts that the cache keeps for `cuts`.

        Raises:
            InputError: the network has no such cut.
        """
        network = self.study.recipe.network
        for cut in cuts:
            if cut not in network.cuts:
                raise InputError(f"cut {cut}: choose among 1 to {len(network.cuts)}")
        return sorted({network.kept_cut(cut) for cut in cuts})


def open_network(
    run: str | Path,
    network: str,
    *,
    task: str | None = None,
    data: str | Path | None = None,
    views: int = 1,
    log: Log = print_warning,
) -> FeatureRequest:
    """Read a trained network, its mean image and the list of images, and prepare those that are not yet.

    The arguments are those of `of`.

    Raises:
        InputError: no such study, network, task or images; the network is not trained.
    """
    folder = Path(run)
    recorded = records.read_results(folder)
    study = Study.read(paths.study_file(folder))
    cell = _choose_cell(folder, study, network)
    result = next((r for r in recorded.results if (r.name, r.seed) == (cell.name, cell.seed)), None)
    if result is None or result.state != "done":
        state = "planned" if result is None else result.state
        raise InputError(f"{folder}: {cell.label} is {state}, not done: train it to its end with grid, or name another")
    try:
        weights, _ = tensor_files.load(paths.weights_file(folder, cell))
    except (FileNotFoundError, CorruptFileError) as error:
        raise InputError(
            f"{folder}: the weights of {cell.label} are missing or damaged ({error}): the same grid command trains "
            "them again"
        ) from None
    if views not in COUNTS:
        raise InputError(f"views {views}: choose 1 (the centre), 2 (with its mirror) or 10 (corners and centre)")
    if data is not None and task is not None:
        raise InputError(f"task {task} is one of the study's, {data} are other images: name one of them")
    if (task or cell.target) not in TASKS:
        raise InputError(f"task {task}: choose A or B")
    store, where = _open_store(folder, recorded, study, task or cell.target, None if data is None else str(data), log)
    if data is not None:
        task, classes, per_class = Path(where).name, store.classes, None
    else:
        task = task or cell.target
        classes, per_class = tuple(recorded.facts["classes"][task]), study.per_class
    store.require_both_parts(classes)
    return FeatureRequest(
        cell=cell,
        label=cell.label,
        study=study,
        folder=folder,
        weights=weights,
        means_of=study.means_of(cell),
        means=load_means(study, folder, study.means_of(cell)),
        data=where,
        task=task,
        classes=classes,
        store=store,
        images={
            "train": select_task_images(store, store.train, classes, per_class),
            "val": select_task_images(store, store.val, classes),
        },
        views=list_views(views, study.recipe.network.margin),
        device=torch.device(study.device if study.device == "cpu" or torch.cuda.is_available() else "cpu"),
    )


def _choose_cell(folder: Path, study: Study, network: str) -> Cell:
    """Return the cell that is called `network`; without a seed in the name, that of the study's first."""
    cells = [cell for cell in study.cells() if network in (cell.label, cell.name)]
    if not cells:
        names = sorted({cell.name for cell in study.cells()}, key=lambda name: (not name.startswith("base"), name))
        raise InputError(
            f"{folder}: has no network {network}: choose among {', '.join(names)}, with a seed as in "
            f"{names[0]}.s{study.seeds[0]} where there are several"
        )
    return next((cell for cell in cells if cell.seed == study.seeds[0]), cells[0])


def _open_store(
    folder: Path, recorded: records.StudyResults, study: Study, task: str, data: str | None, log: Log
) -> tuple[Store, str]:
    """Return the store of `data`, else of the study's task, prepared where it is not, and the images' name."""
    source = images.find_source(recorded.data_of(task) if data is None else data)
    side = study.recipe.network.store
    kind: Kind = recorded.store_kind(task) if data is None else "raw"
    store = images.open_store(source, side, kind=kind, bad_images=study.bad_images, log=log)
    if data is None and store.digest != study.images_of(task):
        raise InputError(
            f"{folder}: {source.where} does not hold the images that the study was trained on any more: put them back, "
            "or name images as data"
        )
    if store.size != side:
        raise InputError(
            f"{data} holds {store.size} x {store.size} images, the network needs {side}: prepare them again with "
            f"--size {side}"
        )
    return store, source.where


def read_features(
    request: FeatureRequest,
    cuts: Sequence[int],
    part: Part,
    ids: Tensor,
    *,
    keep: bool = False,
    log: Log = print_warning,
) -> dict[int, Features]:
    """Return cut -> features of the images `ids`; what the cache lacks is computed in one forward pass for all cuts.

    Args:
        ids: (N,) int64, see `FeatureRequest.ids`.
        keep: see `of`.

    Raises:
        InputError: no such cut.
    """
    cache_cuts = request.check_cuts(cuts)
    with training_conditions(request.study.threads):
        entries = (request.find_or_fill if keep else request.find)(part, cache_cuts, log=log)
        read = {cut: _read(entry, request, ids, log) for cut, entry in entries.items()}
        values = {cut: x for cut, x in read.items() if x is not None}
        values |= _compute(request, part, ids, [cut for cut in cache_cuts if cut not in values])
        for cut in cuts:
            if cut not in values:
                values[cut] = _run_on(request, values[request.study.recipe.network.kept_cut(cut)], cut)
    labels, views = torch.from_numpy(request.images[part].labels)[ids], request.views
    return {
        cut: Features(
            values[cut].unflatten(0, (len(ids), len(views))), ids, labels, request.classes, views, request.label, cut
        )
        for cut in cuts
    }


def keep_features(
    request: FeatureRequest, cuts: Sequence[int], part: Part, *, log: Log, progress: Log
) -> list[CacheEntry]:
    """Put features of all images of a part into the cache, all that are missing in one forward pass.

    Returns:
        The entries, one per cut that is stored, see `Architecture.kept_cut`.

    Raises:
        InputError: no such cut; the cache cannot be written, or its disk is full.
    """
    cache_cuts = request.check_cuts(cuts)
    with training_conditions(request.study.threads):
        request.fill(part, cache_cuts, log=log, progress=progress)
        return list(request.find(part, cache_cuts, log=log).values())


def _read(entry: CacheEntry, request: FeatureRequest, ids: Tensor, log: Log) -> Tensor | None:
    """Return (N * V, ...) from an entry; None, and a line in the log, where it proves damaged."""
    numbers = ids[:, None] * entry.views + torch.arange(len(request.views))
    try:
        with entry.reading(log) as reader:
            entry.count_use()
            return reader.read(numbers.view(-1))
    except CorruptFileError:
        return None  # quarantined and logged
    except InputError as error:
        log(f"cut {entry.key.cut} of {request.label} is computed: {error}")
        return None


def _compute(request: FeatureRequest, part: Part, ids: Tensor, cuts: Sequence[int]) -> dict[int, Tensor]:
    """Return cut -> (N * V, ...) bfloat16 on the CPU, without the cache."""
    if not cuts:
        return {}
    whole = request.images[part]
    some = TaskImages(whole.part, whole.rows[ids.numpy()], whole.labels[ids.numpy()])
    network, records = request.study.recipe.network, len(ids) * len(request.views)
    values = {cut: empty_features(records, network.cut_shape(cut)) for cut in cuts}
    done = 0
    for batch in request.compute(some, cuts):
        count = len(batch[cuts[0]])
        for cut, x in batch.items():
            values[cut][done : done + count] = x
        done += count
    return values


def _run_on(request: FeatureRequest, kept: Tensor, cut: int) -> Tensor:
    """Return the features at `cut` on the CPU, from (N, E) at the cut that the cache keeps for it."""
    start, batch = request.study.recipe.network.kept_cut(cut), request.study.recipe.batch
    net, dtype = request.network(cut), dtype_of(request.study.precision)
    parts = []
    with torch.no_grad():
        for x in kept.split(batch):
            padded = torch.cat([x, x.new_zeros(batch - len(x), x.shape[1])]) if len(x) < batch else x
            y = net(padded.to(request.device, dtype), start=start, stop=cut)
            parts.append(y[: len(x)].to("cpu", torch.bfloat16))
    return torch.cat(parts)
