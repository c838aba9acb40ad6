"""The usual ways from images to batches: PyTorch's DataLoader from slow to fast, and DALI's plain pipeline.

`as_usual` is what tutorials do. The others are written as somebody writes them who knows how: what can be done on bytes
is done on bytes, only on what the crop leaves, and the rest for a whole batch at a time. They run without end, so that
workers are never started anew and always have batches ready. All subtract a mean colour and give (N, 3, crop, crop)
float32; except `as_usual`, PyTorch's loaders give them channels-last, as networks on a CPU want them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.io import ImageReadMode, decode_jpeg, read_file
from torchvision.transforms import v2

MEAN = (123.0, 117.0, 104.0)


def with_pillow(path: Path) -> Tensor:
    """(3, H, W) uint8."""
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def reduced(path: Path, side: int) -> Tensor:
    """(3, side, side) uint8, from a file of any size; of a large one libjpeg decodes a half, a quarter or an eighth."""
    with Image.open(path) as image:
        image.draft("RGB", (side, side))
        return torch.from_numpy(np.array(image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR))).permute(
            2, 0, 1
        )


def with_torchvision(path: Path) -> Tensor:
    """(3, H, W) uint8."""
    return decode_jpeg(read_file(str(path)), mode=ImageReadMode.RGB)


def resized(path: Path, side: int) -> Tensor:
    """(3, side, side) uint8, from a file of any size; the resize is in bytes, of channels-last pixels."""
    return v2.functional.resize(with_torchvision(path), [side, side], antialias=True)


class Jpegs(Dataset[Tensor]):
    """JPEGs that `read` makes square, each as a random crop, mirrored half of the time: (3, crop, crop) uint8."""

    def __init__(self, files: Sequence[Path], read: Callable[[Path], Tensor], crop: int) -> None:
        self._files, self._read, self._crop = files, read, crop

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Tensor:
        image = self._read(self._files[index])
        top, left = (random.randint(0, side - self._crop) for side in image.shape[1:])
        view = image[:, top : top + self._crop, left : left + self._crop]
        return view.flip(2) if random.random() < 0.5 else view


def _batch(views: list[Tensor]) -> Tensor:
    return torch.stack([view.permute(1, 2, 0) for view in views])


def _less_mean(views: Tensor) -> Tensor:
    """(N, crop, crop, 3) uint8 -> (N, 3, crop, crop) float32 in channels-last memory."""
    found = views.float()
    # Whole rows: three values at a time, the usual broadcast, are slower here than planes.
    found.flatten(2).sub_(torch.tensor(MEAN).repeat(views.shape[2]))
    return found.permute(0, 3, 1, 2)


def dataloader(
    files: Sequence[Path], read: Callable[[Path], Tensor], crop: int, batch: int, workers: int
) -> Iterator[Tensor]:
    """Batches without end in random order; workers hand over bytes, a quarter of float32."""
    return map(_less_mean, _without_end(Jpegs(files, read, crop), batch, workers, collate_fn=_batch))


def as_usual(root: Path, side: int, crop: int, batch: int, workers: int) -> Iterator[Any]:
    """Batches of torchvision's ImageFolder with its transforms, from files of any size."""
    steps = [
        transforms.Resize((side, side)),
        transforms.RandomCrop(crop),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize([channel / 255 for channel in MEAN], [1 / 255] * 3),
    ]
    return _without_end(ImageFolder(str(root), transforms.Compose(steps)), batch, workers)


class Arrays(Dataset[Tensor]):
    """Random crops of decoded images in one array in memory, (N, side, side, 3) uint8, a whole batch at a time."""

    def __init__(self, images: np.ndarray[Any, np.dtype[np.uint8]], crop: int) -> None:
        self._images, self._crop = images, crop

    def __len__(self) -> int:
        return len(self._images)

    def __getitems__(self, indices: Sequence[int]) -> Tensor:
        crop = self._crop
        views = np.empty((len(indices), crop, crop, 3), np.uint8)
        for view, index in zip(views, indices, strict=True):
            image = self._images[index]
            top, left = (random.randint(0, side - crop) for side in image.shape[:2])
            part = image[top : top + crop, left : left + crop]
            view[:] = part[:, ::-1] if random.random() < 0.5 else part
        return torch.from_numpy(views)


def of_arrays(images: np.ndarray[Any, np.dtype[np.uint8]], crop: int, batch: int) -> Iterator[Tensor]:
    """Batches without end in random order of images that were decoded before; workers would cost more than they do."""
    return map(_less_mean, _without_end(Arrays(images, crop), batch, 0, collate_fn=_unchanged))


def _unchanged(batch: Tensor) -> Tensor:
    return batch


def _without_end(dataset: Dataset[Any], batch: int, workers: int, **how: Any) -> Iterator[Any]:
    sampler = RandomSampler(dataset, replacement=True, num_samples=1 << 40)  # type: ignore[arg-type]
    return iter(DataLoader(dataset, batch, sampler=sampler, num_workers=workers, **how))


def dali(files: Sequence[Path], crop: int, batch: int, threads: int, device: torch.device) -> Callable[[], object]:
    """Batches without end in random order; decoded on the CPU, or "mixed" where `device` is a GPU."""
    from nvidia.dali import fn
    from nvidia.dali.pipeline import Pipeline
    from nvidia.dali.types import DALIDataType

    on_gpu = device.type == "cuda"
    pipeline: Any = Pipeline(batch, threads, device_id=(device.index or 0) if on_gpu else None)
    with pipeline:
        jpegs, _ = fn.readers.file(files=[str(file) for file in files], random_shuffle=True)
        images = fn.decoders.image(jpegs, device="mixed" if on_gpu else "cpu")
        batches = fn.crop_mirror_normalize(
            images,
            crop=(crop, crop),
            crop_pos_x=fn.random.uniform(range=(0.0, 1.0)),
            crop_pos_y=fn.random.uniform(range=(0.0, 1.0)),
            mirror=fn.random.coin_flip(),
            mean=list(MEAN),
            std=[1.0, 1.0, 1.0],
            dtype=DALIDataType.FLOAT,
            output_layout="CHW",
        )
        pipeline.set_outputs(batches)
    pipeline.build()
    return lambda: pipeline.run()
