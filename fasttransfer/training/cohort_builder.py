"""Build the cohort of a job: read images, means and sources from the store and the study's folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from fasttransfer.core.errors import InputError
from fasttransfer.features.cached_feed import open_cached_feed
from fasttransfer.features.feature_source import FeatureSource
from fasttransfer.pipelines.store import Store
from fasttransfer.pipelines.streams import TaskImages, select_task_images
from fasttransfer.pipelines.views import list_views
from fasttransfer.study.cells import Cell, frozen_by_source
from fasttransfer.study.configuration import Study
from fasttransfer.study.feeds import load_means, study_feed
from fasttransfer.training.checkpoint import load_network, load_pretrained_state
from fasttransfer.training.cohort import Cohort, CohortTask, OneProcess
from fasttransfer.training.draws import image_stream
from fasttransfer.training.messages import Noted
from fasttransfer.training.transfer import source_weights


@dataclass(frozen=True)
class StudyContext:
    """The study that jobs belong to, and where it is on disk.

    Attributes:
        folder: of the study; stores: task -> the folder of its images.
        classes: task -> its classes in label order.
        checkpoint_seconds: see `Cohort.run`; hw_share, features: see `fasttransfer.study.configuration.Feeding`.
    """

    study: Study
    folder: Path
    stores: dict[str, Path]
    classes: dict[str, tuple[str, ...]]
    checkpoint_seconds: float = 30.0
    hw_share: float | None = None
    features: Literal["auto", "cache", "live"] = "auto"


def build_cohort(
    setting: StudyContext,
    cells: Sequence[Cell],
    device: torch.device,
    on_message: Callable[[Noted], None] = lambda message: None,
    stop: Callable[[], bool] = lambda: False,
    *,
    processes: OneProcess | None = None,
) -> Cohort:
    """Return the cohort of `cells`, with images, means and sources from the store and the study's folder.

    In a study with views this computes the features of its frozen cells, unless the cache has them.

    Args:
        on_message: called with how the features come along.
        stop: returns True to compute no more features and run the cells live.
        processes: this one, and those that train the cohort with it.

    Raises:
        InputError: there are more processes than images.
    """
    study, first = setting.study, cells[0]
    store = Store.open(setting.stores[first.target])
    classes = setting.classes[first.target]
    train = select_task_images(store, store.train, classes, study.per_class)
    val = select_task_images(store, store.val, classes)
    processes = processes or OneProcess()
    ranks = processes.share.ranks
    for images, what in ((study.recipe.batch, "a batch"), (len(val), "validation")):
        if images < ranks:
            raise InputError(
                f"{first.name}: {ranks} processes cannot share {images} images of {what}: start {images} at most"
            )
    means = {name: load_means(study, setting.folder, name) for name in sorted({study.means_of(c) for c in cells})}
    stream = replace(image_stream(study, first, len(train)), share=processes.share)
    mine, end = processes.share.of(len(val))
    my_val = TaskImages(val.part, val.rows[mine:end], val.labels[mine:end])
    outputs = study.recipe.outputs_for(first.target, setting.classes)
    read_pretrained = partial(load_pretrained_state, setting.folder)
    sources = source_weights(study, cells, outputs, partial(load_network, setting.folder), read_pretrained)
    open_images = partial(study_feed, study, device, setting.hw_share)
    views = () if study.views is None else list_views(study.views, stream.margin)
    frozen = frozen_by_source(cells) if views else {}
    if setting.features == "live" or not frozen:
        feed = open_images(train, my_val, stream, means)
    else:
        feature_sources = {
            name: FeatureSource(
                label=group[0].needs.label if group[0].needs else f"{name}.{first.target}.s{first.seed}",
                study=study,
                folder=setting.folder,
                weights=sources[name],
                means_of=study.means_of(group[0]),
                means=means[study.means_of(group[0])],
                data=study.data_of(first.target),
                task=first.target,
                classes=classes,
                store=store,
                images={"train": train, "val": my_val},
                views=views,
                device=device,
                hw_share=setting.hw_share,
            )
            for name, group in frozen.items()
        }
        feed = open_cached_feed(
            feature_sources,
            cells,
            stream,
            lambda names: open_images(train, my_val, stream, {name: means[name] for name in sorted(names)}),
            setting.features,
            log=lambda text: on_message(Noted(text)),
            progress=lambda text: on_message(Noted(text, stays=False)),
            stop=stop,
        )
    target = CohortTask(first.target, len(classes), outputs, len(train), len(val), feed)
    return Cohort(study, cells, target, sources, setting.folder, device, processes)
