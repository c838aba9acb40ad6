"""From files people have to a trained step, through both feeds; skipped where the real images are not beside us."""

from __future__ import annotations

import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from studies import cohort, setting_in, store_of

from fasttransfer.core.files import cache_folder
from fasttransfer.networks.architecture import StepDraws
from fasttransfer.networks.caffenet import CAFFENET
from fasttransfer.pipelines.choose_feed import open_feed
from fasttransfer.pipelines.dali_feed import has_dali
from fasttransfer.pipelines.mean_images import compute_mean_image
from fasttransfer.pipelines.prepare import prepare
from fasttransfer.pipelines.store import Kind
from fasttransfer.pipelines.streams import Stream, TaskImages
from fasttransfer.study.cells import base
from fasttransfer.study.configuration import Choices
from fasttransfer.study.recipe import load_recipe
from fasttransfer.training.messages import Checked, Message
from fasttransfer.training.step import StageTrainer

pytestmark = pytest.mark.skipif(not has_dali(), reason="DALI is not installed")

CPU = torch.device("cpu")
KINDS: tuple[Kind, ...] = ("raw", "jpeg")


def test_a_step_on_full_size_images(shared: Path) -> None:
    """The 400 have no validation images of their own, so that there is no study of them."""
    network = replace(CAFFENET, channels=(16, 16, 16, 16, 16), hidden=(64, 64))  # the paper's takes a minute
    recipe, losses = replace(load_recipe("caffe"), network=network), {}
    for kind in KINDS:
        source = shared / "data/ilsvrc12-samples.tar"
        store = prepare(source, size=network.store, cache=cache_folder(), kind=kind, log=lambda text: None)
        rows = np.arange(8)
        images = TaskImages(store.train, rows, rows)
        feed = open_feed(
            images,
            images,
            Stream(1, 2, 8, 8, network.margin),
            {"A": torch.from_numpy(compute_mean_image(images))},
            device=CPU,
            threads=1,
            crop=network.crop,
            scale=recipe.pixel_scale,
            **network.input_form("cpu", torch.float32),
        )
        batch = feed.train(0)
        trainee = StageTrainer(network.build(8, "fp32", CPU), 0, network.draw(8, "he", lambda stage: stage), recipe)
        keys = {stage: stage for stage in network.random_stages}
        draws = StepDraws(keys, torch.zeros((), dtype=torch.int64), recipe.dropout or 0.0)
        losses[kind] = float(trainee.step(batch.images["A"], batch.labels, draws, torch.tensor(1e-4)))
        feed.close()
    assert 0 < losses["raw"] < float("inf")
    assert losses["jpeg"] == pytest.approx(losses["raw"], rel=0.1)


def test_a_network_on_tiny_imagenet(shared: Path, tmp_path: Path) -> None:
    some_of_tiny_imagenet(shared / "data/tiny-imagenet-200-subset.tar", tmp_path / "images")
    choices = Choices(
        data=str(tmp_path / "images"),
        split="random:0",
        recipe="mini",
        steps=3,
        batch=16,
        precision="fp32",
        device="cpu",
    )
    losses = {}
    for kind in KINDS:
        store = store_of(choices, tmp_path / kind, kind, size=64)
        heard: list[Message] = []
        assert cohort(setting_in(tmp_path / f"{kind}-run", choices, store), [base("A", 0)]).run(
            heard.append, lambda: False
        )
        losses[kind] = [m.evaluations[-1].val_loss for m in heard if isinstance(m, Checked)][-1]
    assert losses["raw"] is not None and 0 < losses["raw"] < 10
    assert losses["jpeg"] == pytest.approx(losses["raw"], rel=0.1)


def some_of_tiny_imagenet(archive: Path, folder: Path) -> None:
    """Six classes of 20 training and 8 validation images, as an ImageFolder."""
    taken: dict[str, int] = {}
    with tarfile.open(archive) as file:
        for member in file:
            steps = member.name.split("/")
            if not member.isfile() or "train" not in steps or steps[-2] != "images":
                continue
            name = steps[-3]
            if name not in taken and len(taken) == 6:
                break
            count = taken[name] = taken.get(name, 0) + 1
            if count <= 28:
                into = folder / ("train" if count <= 20 else "val") / name
                into.mkdir(parents=True, exist_ok=True)
                (into / steps[-1]).write_bytes(file.extractfile(member).read())  # type: ignore[union-attr]
