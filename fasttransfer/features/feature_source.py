"""A network and the images it reads: the cache entries of its features, and the forward pass that computes them.

A study that trains frozen cells, a probe and a notebook all ask through `FeatureSource`, so that each finds in the
cache what another has put there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

import torch
from torch import Tensor

from fasttransfer.core.errors import InputError
from fasttransfer.core.progress import Log, format_duration
from fasttransfer.features import cache
from fasttransfer.features.cache_entry import CacheEntry, EntryInfo
from fasttransfer.features.cache_key import CacheKey, images_digest, means_digest, state_digest, versions
from fasttransfer.networks.architecture import StagedNetwork, rounded_cuts
from fasttransfer.pipelines.store import Store
from fasttransfer.pipelines.streams import Feed, Sweep, TaskImages
from fasttransfer.pipelines.views import COUNTS, View, list_views
from fasttransfer.study.configuration import Study
from fasttransfer.study.feeds import study_feed

Part = Literal["train", "val"]

_PROGRESS_SECONDS = 1.0


@contextmanager
def training_conditions(threads: int) -> Iterator[None]:
    """Set for a while what rounding depends on in a process, as a study's workers set it."""
    before, deterministic = torch.get_num_threads(), torch.backends.cudnn.deterministic
    torch.set_num_threads(threads)
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.set_num_threads(before)
        torch.backends.cudnn.deterministic = deterministic


class FillStopped(Exception):
    """The caller stopped the filling of the cache; nothing of it was kept."""


@dataclass(frozen=True, eq=False, kw_only=True)
class FeatureSource:
    """All that determines features: a network, the images it reads and the device that computes.

    Attributes:
        label: name of the network for people, e.g. "baseA.s0".
        study: recipe, precision and threads, which enter the keys.
        folder: of the study.
        weights: the state, by name, at least of the stages up to the deepest cut.
        means_of: name of the means that are subtracted from the pixels, and of its images in a `Batch`.
        means: (S, S, 3) float32, these means.
        data: name of the images for people; task: "A", "B", or the name of images that are not the study's.
        classes: of the task, in the order of its labels.
        store: of the images; images: those of each part.
        views: one of the lists of `list_views`.
        device: that computes.
        hw_share: share of JPEGs that the GPU's decoder takes, see `fasttransfer.study.configuration.Feeding`.
    """

    label: str
    study: Study
    folder: Path
    weights: Mapping[str, Tensor]
    means_of: str
    means: Tensor
    data: str
    task: str
    classes: tuple[str, ...]
    store: Store
    images: Mapping[Part, TaskImages]
    views: tuple[View, ...]
    device: torch.device
    hw_share: float | None = None

    def with_first_view(self) -> Self:
        """Return the source with the first view alone, the one that validation images are shown in."""
        return replace(self, views=self.views[:1])

    def key(self, part: Part, cut: int) -> CacheKey:
        """Return the key of the entry over all images of a part, computed by this process as it is set now.

        Raises:
            ValueError: the cache does not keep features of this cut, see `Architecture.kept_cut`.
        """
        device, recipe, network = self.device.type, self.study.recipe, self.study.recipe.network
        if cut not in {network.kept_cut(n) for n in network.cuts}:
            raise ValueError(f"features of cut {cut} of {network.name} are not kept")
        return CacheKey(
            prefix=state_digest(self.weights, network, cut),
            mean=means_digest(self.means),
            scale=recipe.pixel_scale,
            network=network.facts(),
            cut=cut,
            shape=network.cut_shape(cut),
            images=images_digest(self.store.digest, part, self.images[part].rows),
            views=self.views,
            precision=self.study.precision,
            device=device,
            threads=torch.get_num_threads() if device == "cpu" else 0,
            batch=recipe.batch,
            versions=versions(device, is_jpeg=self.store.kind == "jpeg"),
        )

    def find(self, part: Part, cuts: Collection[int], *, log: Log) -> dict[int, CacheEntry]:
        """Return cut -> entry for those of `cuts` that the cache holds, perhaps among more views.

        An entry of a longer list of views begins with the views of a shorter one. One that cannot be read is logged
        and left out.
        """
        entries = {}
        for cut in cuts:
            key = self.key(part, cut)
            for count in COUNTS:
                if cut not in entries and count >= len(self.views):
                    try:
                        views = list_views(count, self._margin)
                        if entry := cache.find_entry(cache.cache_root(), replace(key, views=views), log):
                            entries[cut] = entry
                    except InputError as error:
                        log(f"cut {cut} of {self.label} is computed: {error}")
        return entries

    def find_or_fill(
        self,
        part: Part,
        cuts: Collection[int],
        *,
        log: Log,
        progress: Log = lambda text: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> dict[int, CacheEntry]:
        """Return cut -> entry, after `fill` has computed what was missing.

        Where the cache cannot be written, that is logged and only what was there is returned, as after a stop.
        """
        entries = self.find(part, cuts, log=log)
        if missing := [cut for cut in cuts if cut not in entries]:
            try:
                self.fill(part, missing, log=log, progress=progress, stop=stop)
            except FillStopped:
                return entries
            except InputError as error:
                log(f"features of {self.label} are not kept but computed live: {error}")
                return entries
            entries |= self.find(part, missing, log=log)
        return entries

    def fill(
        self, part: Part, cuts: Collection[int], *, log: Log, progress: Log, stop: Callable[[], bool] = lambda: False
    ) -> None:
        """Compute the entries of `cuts` that are missing in one forward pass, and put them into the cache together.

        Args:
            log: told when another process computes them and this one waits.
            progress: told once a second how far it is.
            stop: called per batch; True ends the filling.

        Raises:
            FillStopped: `stop` returned True.
            InputError: the disk is full, read-only or not ours to write; an image cannot be read.
        """
        images = self.images[part]
        info = EntryInfo(self.label, str(self.folder), self.data, part, self.task, self.classes)
        wanted = [(self.key(part, cut), info) for cut in cuts]
        with cache.make_entries(cache.cache_root(), wanted, images, log) as writers:
            if not writers:
                return
            start = last = time.monotonic()
            records, done = len(images) * len(self.views), 0
            with closing(self.compute(images, [writer.key.cut for writer in writers])) as batches:
                for features in batches:
                    if stop():
                        raise FillStopped
                    for writer in writers:
                        writer.append(features[writer.key.cut].cpu())
                    done += len(features[writers[0].key.cut])
                    now = time.monotonic()
                    if now - last >= _PROGRESS_SECONDS:
                        last, share = now, done / records
                        left = format_duration((now - start) / share * (1 - share))
                        progress(f"features of {self.label} on task {self.task}: {share:.0%}, {left} left")

    def compute(self, images: TaskImages, cuts: Sequence[int]) -> Generator[dict[int, Tensor], None, None]:
        """Yield cut -> (n, ...) bfloat16 on the device, batch by batch: image after image, each in all its views."""
        sweep, net = self.sweep(images), self.network(max(cuts))
        with closing(self.open_feed(images, sweep)) as feed:
            for step in range(sweep.steps):
                features = rounded_cuts(net, feed.train(step).images[self.means_of], cuts, sweep.batch)
                left = sweep.records - step * sweep.batch
                yield {cut: x[:left] for cut, x in features.items()}

    def sweep(self, images: TaskImages, batch: int | None = None) -> Sweep:
        """Return the order in which `images` are computed and their features stored."""
        return Sweep(0, 0, len(images), batch or self.study.recipe.batch, self._margin, self.views)

    def network(self, stop: int) -> StagedNetwork:
        """Return stages 1 to `stop` on the device, frozen."""
        net = self.study.recipe.network.build(2, self.study.precision, self.device, stop=stop)
        net.load(self.weights)
        return net.freeze()

    def open_feed(self, images: TaskImages, sweep: Sweep) -> Feed:
        """Open the feed whose training batches are `images` in the order of `sweep`."""
        return study_feed(self.study, self.device, self.hw_share, images, images, sweep, {self.means_of: self.means})

    @property
    def _margin(self) -> int:
        return self.study.recipe.network.margin
