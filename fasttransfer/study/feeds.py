"""The feeds of a study: images in the form that its networks read, and the means that are subtracted from them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fasttransfer.networks.precision import dtype_of
from fasttransfer.pipelines.choose_feed import open_feed
from fasttransfer.pipelines.streams import Feed, Stream, TaskImages
from fasttransfer.study import paths
from fasttransfer.study.configuration import Study


def study_feed(
    study: Study,
    device: torch.device,
    hw_share: float | None,
    train: TaskImages,
    val: TaskImages,
    stream: Stream,
    means: Mapping[str, Tensor],
) -> Feed:
    """Open the feed of images in the form that the networks of `study` read, on `device`.

    For the other parameters see `fasttransfer.pipelines.choose_feed.open_feed`.
    """
    network = study.recipe.network
    return open_feed(
        train,
        val,
        stream,
        means,
        device=device,
        threads=study.threads,
        hw_share=hw_share,
        crop=network.crop,
        scale=study.recipe.pixel_scale,
        **network.input_form(device.type, dtype_of(study.precision)),
    )


def load_means(study: Study, folder: Path, name: str) -> Tensor:
    """Return the means that are subtracted from pixels, (S, S, 3) float32: a task's mean image, or one per channel.

    Args:
        folder: of the study.
        name: see `Study.means_of`.
    """
    network = study.recipe.network
    if network.channel_mean is None:
        return torch.from_numpy(np.load(paths.mean_file(folder, name)))
    return torch.tensor(network.channel_mean).expand(network.store, network.store, 3).contiguous()
