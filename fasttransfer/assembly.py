"""A job's cells become a cohort: pictures, means and sources are read from the store and the study's folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fasttransfer import machine, weights
from fasttransfer.cells import Cell
from fasttransfer.cohort import Cohort, Target, stream_of, weights_path
from fasttransfer.pipelines.feed import task_pictures
from fasttransfer.pipelines.feeds import open_feed
from fasttransfer.pipelines.store import Store
from fasttransfer.study import Study


@dataclass(frozen=True)
class Setting:
    """What every job of a study needs to know; `classes` are those of tasks A and B, in label order.

    `hw_share` is that of `fasttransfer.study.Feeding`.
    """

    study: Study
    folder: Path
    store: Path
    classes: dict[str, tuple[str, ...]]
    checkpoint_seconds: float = 30.0
    hw_share: float | None = None


def build_cohort(setting: Setting, cells: Sequence[Cell], device: torch.device) -> Cohort:
    """The cohort of `cells`, with its pictures, means and sources read from the store and the study's folder."""
    study, first = setting.study, cells[0]
    store = Store.open(setting.store)
    classes = setting.classes[first.target]
    train, val = task_pictures(store, store.train, classes, study.per_class), task_pictures(store, store.val, classes)
    geometry = study.recipe.geometry
    feed = open_feed(
        train,
        val,
        stream_of(study, first, len(train)),
        {t: torch.from_numpy(np.load(mean_path(setting.folder, t))) for t in sorted({c.mean_of for c in cells})},
        device=device,
        threads=study.threads,
        hw_share=setting.hw_share,
        crop=geometry.crop,
        scale=study.recipe.scale,
        **machine.entrance(geometry, device.type, study.precision),
    )
    bases = {c.needs for c in cells if c.needs is not None}
    sources = {base.target: weights.load(weights_path(setting.folder, base))[0] for base in bases}
    outputs = study.recipe.outputs_for(first.target, setting.classes)
    target = Target(first.target, len(classes), outputs, len(train), len(val), feed)
    return Cohort(study, cells, target, sources, setting.folder, device)


def mean_path(folder: Path, task: str) -> Path:
    """Where the mean picture of a task lies in the study's folder."""
    return folder / "means" / f"{task}.npy"
