"""Pictures to the network's input, 256 to 227, one thread: the native operator from a raw store against its reference
on the same store, and against what is commonly done: a DataLoader that decodes the same pictures from JPEG.

Pictures are smooth noise, as JPEGs about as large as photographs of that size. Every case makes batches of 64 in its
own random order, from files that the system holds in memory. The loader subtracts a mean colour, the rest a mean
picture.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torch.utils.dlpack import from_dlpack
from torchvision.transforms import v2

from fasttransfer import native, randomness
from fasttransfer.ops._augment import augment, augment_reference
from fasttransfer.pipelines.feed import Pictures, Stream
from fasttransfer.pipelines.memory import MemoryFeed
from fasttransfer.pipelines.store import Part

STORE, CROP, PICTURES, BATCH = 256, 227, 512, 64


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[Part, list[Path]]:
    """The same pictures as a store and as JPEG files."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = torch.Generator().manual_seed(0)
    files = []
    store = np.empty((PICTURES, STORE, STORE, 3), dtype=np.uint8)
    for i in range(PICTURES):
        coarse = torch.rand(1, 3, 24, 24, generator=generator) * 255
        smooth = F.interpolate(coarse, size=(STORE, STORE), mode="bicubic")
        noise = torch.randn(1, 1, STORE, STORE, generator=generator) * 6
        pixels = (smooth + noise)[0].clamp(0, 255).byte().permute(1, 2, 0).numpy()
        files.append(folder / f"{i}.jpg")
        Image.fromarray(pixels).save(files[-1], quality=90)
        store[i] = np.asarray(Image.open(files[-1]))
    np.save(folder / "store.npy", store)
    shard = np.asarray(np.load(folder / "store.npy", mmap_mode="r"))
    return Part(np.zeros(PICTURES, np.int64), (shard,), np.zeros(1, np.int64), STORE), files


class Jpegs(Dataset[Tensor]):
    """As a PyTorch user would write it."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files
        self.transform = v2.Compose(
            [
                v2.PILToTensor(),
                v2.RandomCrop(CROP),
                v2.RandomHorizontalFlip(),
                v2.ToDtype(torch.float32),
                v2.Normalize(mean=[123.0, 117.0, 104.0], std=[1.0, 1.0, 1.0]),
            ]
        )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(Image.open(self.files[index]).convert("RGB"))


def draws() -> Iterator[list[Tensor]]:
    """Rows, top, left and mirror of one batch after another."""
    made = []
    for step in range(16):
        generator = torch.Generator().manual_seed(step)
        rows = torch.randperm(PICTURES, generator=generator)[:BATCH]
        top, left = torch.randint(STORE - CROP + 1, (2, BATCH), generator=generator)
        made.append([rows, top, left, torch.rand(BATCH, generator=generator) < 0.5])
    return itertools.cycle(made)


def from_store(part: Part, run: Callable[..., Tensor], **how: Any) -> Callable[[], Tensor]:
    shards = list(map(from_dlpack, part.shards))
    mean, batches = torch.rand(STORE, STORE, 3) * 255, draws()

    def make() -> Tensor:
        rows, *views = next(batches)
        return run(shards, rows, mean, *views, crop=CROP, scale=1.0, **how)

    return make


def feed(part: Part, **how: Any) -> Callable[[], Tensor]:
    everything = Pictures(part, np.arange(PICTURES), np.zeros(PICTURES, np.int64))
    order, views = (randomness.key(0, "bench-augment", i) for i in range(2))
    stream = Stream(order, views, PICTURES, BATCH, STORE - CROP)
    means = {"A": torch.rand(STORE, STORE, 3) * 255}
    made = MemoryFeed(everything, everything, stream, means, crop=CROP, scale=1.0, device=torch.device("cpu"), **how)
    steps = itertools.count()
    return lambda: made.train(next(steps)).pictures["A"]


def loader(files: list[Path]) -> Callable[[], Tensor]:
    dataset = Jpegs(files)
    sampler = RandomSampler(dataset, replacement=True, num_samples=10**6)
    batches = iter(DataLoader(dataset, batch_size=BATCH, sampler=sampler))
    return lambda: next(batches)


BF16 = {"dtype": torch.bfloat16}
REFERENCE = {"block": 1, "side": CROP, "dtype": torch.float32}
CASES: dict[str, Callable[[Part, list[Path]], Callable[[], Tensor]]] = {
    "native fp32": lambda part, _: from_store(part, augment),
    "native bf16": lambda part, _: from_store(part, augment, **BF16),
    "native bf16, block 4": lambda part, _: from_store(part, augment, block=4, **BF16),
    "feed bf16, block 4": lambda part, _: feed(part, block=4, **BF16),
    "reference fp32": lambda part, _: from_store(part, augment_reference, **REFERENCE),
    "reference bf16, block 4": lambda part, _: from_store(part, augment_reference, block=4, side=57, **BF16),
    "compiled reference fp32": lambda part, _: from_store(part, torch.compile(augment_reference), **REFERENCE),
    "compiled reference bf16, block 4": lambda part, _: from_store(
        part, torch.compile(augment_reference), block=4, side=57, **BF16
    ),
    "DataLoader fp32": lambda _, files: loader(files),
}


@pytest.mark.parametrize("case", CASES)
def test_augment(benchmark: Any, measure: Callable[..., None], pictures: tuple[Part, list[Path]], case: str) -> None:
    assert "native" in native.operators()["augment"]
    benchmark.group = f"{BATCH} pictures, {STORE} to {CROP}, one thread"
    make = CASES[case](*pictures)
    assert make().shape[0] == BATCH
    measure(make)
    benchmark.extra_info["pictures a second"] = BATCH / benchmark.stats.stats.median
    benchmark.extra_info["bytes of a JPEG"] = sum(map(os.path.getsize, pictures[1])) / PICTURES
