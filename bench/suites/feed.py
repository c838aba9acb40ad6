"""The cases of `fasttransfer bench feed`: images from files to batches, against what is commonly done with them.

Four steps: files in memory to pixels; the same with the resize to a store's side; a whole source to a store on disk; a
store to the network's batches. The memory of the last two is in bench/memory.py.
"""

from __future__ import annotations

import io
import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from fasttransfer.bench.baselines import loaders
from fasttransfer.bench.harness import Call, copying
from fasttransfer.core import randomness
from fasttransfer.core.errors import InputError
from fasttransfer.core.files import cache_folder, make_folder
from fasttransfer.networks.caffenet import CAFFENET
from fasttransfer.pipelines import synthetic
from fasttransfer.pipelines.dali_feed import DaliFeed, has_dali
from fasttransfer.pipelines.decode import decode
from fasttransfer.pipelines.layouts import Listing, list_images
from fasttransfer.pipelines.memory_feed import MemoryFeed
from fasttransfer.pipelines.prepare import prepare_into
from fasttransfer.pipelines.store import JpegStorePart, Kind, RawStorePart, Store
from fasttransfer.pipelines.streams import Feed, Stream, TaskImages

SIDE, CROP, BLOCK = CAFFENET.store, CAFFENET.crop, CAFFENET.stride
BATCH = 64  # images
BUILTIN_SIDE = 400  # pixels: drawn images that are about as large as photographs on the web
STEPS = ("decode", "resize", "prepare", "feed")
CPU = torch.device("cpu")


@dataclass(frozen=True)
class JpegSource:
    """The images to measure on: JPEG files in class folders, and the same files' bytes."""

    listing: Listing
    blobs: Sequence[bytes]

    @property
    def facts(self) -> dict[str, float]:
        """The facts behind the numbers: the count of images and of different ones, mean bytes and pixels."""
        sizes = [Image.open(io.BytesIO(blob)).size for blob in self.blobs]
        return {
            "images": len(self.blobs),
            "different": len(set(self.blobs)),
            "bytes": round(sum(map(len, self.blobs)) / len(self.blobs)),
            "pixels": round(sum(width * height for width, height in sizes) / len(sizes)),
        }


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yield a temporary folder on the disk where stores are kept."""
    with tempfile.TemporaryDirectory(prefix="bench-", dir=make_folder(cache_folder())) as folder:
        yield Path(folder)


def gather(source: Path | None, folder: Path, count: int) -> JpegSource:
    """Lay out `count` images in `folder`, see `lay_out`, and read them."""
    lay_out(source, folder, count)
    listing = list_images(folder)
    return JpegSource(listing, [listing.read(image) for image in listing.train + listing.val])


def lay_out(source: Path | None, folder: Path, count: int) -> None:
    """Put `count` JPEGs of `source`, spread over its classes, or drawn ones into class folders in `folder`.

    Where there are fewer, they are repeated as links to the same file.

    Raises:
        InputError: the source has no images, or none that all decoders read.
    """
    if source is None:
        source = folder.with_name(f"{folder.name}-drawn")
        if not source.exists():
            synthetic.render(source, train=max(1, min(4, count // len(synthetic.SIDES))), val=0, size=BUILTIN_SIDE)
    found = list_images(source)
    every = sorted(found.train + found.val, key=lambda image: (image.label, image.path))
    some = [every[i * len(every) // count] for i in range(count)] if len(every) > count else every
    files: list[Path] = []
    for number, image in enumerate(some):
        data = found.read(image)
        if _plain(data):
            files.append(folder / found.classes[image.label] / f"{number:06d}.jpg")
            make_folder(files[-1].parent)
            files[-1].write_bytes(data)
    if not files:
        raise InputError(f"{source}: holds no JPEG in colour or grey: name other images with --data")
    for number in range(len(files), count):
        first = files[number % len(files)]
        os.link(first, first.with_name(f"{number:06d}-again.jpg"))


def _plain(data: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.format == "JPEG" and image.mode in ("RGB", "L")
    except OSError:
        return False


@contextmanager
def on_cores(count: int) -> Iterator[None]:
    """Limit this thread, and the threads and processes that it starts, to some of the cores."""
    threads, allowed = torch.get_num_threads(), os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, sorted(allowed)[:count])  # threads and processes that start now inherit it
        torch.set_num_threads(count)
        yield
    finally:
        os.sched_setaffinity(0, allowed)
        torch.set_num_threads(threads)


def variants(
    step: str, source: JpegSource, folder: Path, cores: int, device: torch.device
) -> tuple[int, dict[str, Call]]:
    """Return the images per call and the calls of one of `STEPS`."""
    some = source.blobs[: 4 * BATCH]
    if step == "decode":
        return len(some), decoders(some, cores, device)
    if step == "resize":
        return len(some), resizers(some, cores, device)
    if step == "prepare":
        return len(source.blobs), preparations(source, folder, cores, device)
    return BATCH, feeds(source, folder, cores, device)


def decoders(blobs: Sequence[bytes], threads: int, device: torch.device) -> dict[str, Call]:
    """Return decoders of JPEGs in memory to pixels; each call decodes all of `blobs`."""
    found = {
        "Pillow": _in_threads(lambda blob: np.asarray(Image.open(io.BytesIO(blob)).convert("RGB")), blobs, threads),
        "torchvision": _in_threads(_torchvision, blobs, threads),
    }
    if has_dali():
        found["DALI"] = _dali_decoder(blobs, threads, CPU, None)
        if device.type == "cuda":
            found["DALI mixed"] = _dali_decoder(blobs, threads, device, None)
    return found


def resizers(blobs: Sequence[bytes], threads: int, device: torch.device) -> dict[str, Call]:
    """Return decoders to pixels of a store's side, bilinear with antialias; each call does all of `blobs`."""

    def pillow(blob: bytes) -> object:
        image = Image.open(io.BytesIO(blob)).convert("RGB")
        return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR))

    def torchvision(blob: bytes) -> object:
        # Channels-last memory: three times as fast here as planes.
        pixels = _torchvision(blob)[None].contiguous(memory_format=torch.channels_last)
        return F.interpolate(pixels, size=(SIDE, SIDE), mode="bilinear", antialias=True)

    found = {
        "fasttransfer": _in_threads(lambda blob: decode(blob, SIDE), blobs, threads),
        "Pillow": _in_threads(pillow, blobs, threads),
        "torchvision": _in_threads(torchvision, blobs, threads),
    }
    if has_dali():
        found["DALI"] = _dali_decoder(blobs, threads, CPU, SIDE)
        if device.type == "cuda":
            found["DALI mixed"] = _dali_decoder(blobs, threads, device, SIDE)
    return found


def _torchvision(blob: bytes) -> Tensor:
    return decode_jpeg(torch.frombuffer(bytearray(blob), dtype=torch.uint8), mode=ImageReadMode.RGB)


def _in_threads(work: Callable[[bytes], object], blobs: Sequence[bytes], threads: int) -> Call:
    if threads == 1:
        return lambda i: [work(blob) for blob in blobs]
    pool = ThreadPoolExecutor(threads)
    each = 8  # a task: handing over an image at a time would cost
    tasks = [blobs[start : start + each] for start in range(0, len(blobs), each)]
    return lambda i: list(pool.map(lambda task: [work(blob) for blob in task], tasks))


def _dali_decoder(blobs: Sequence[bytes], threads: int, device: torch.device, side: int | None) -> Call:
    from nvidia.dali import fn
    from nvidia.dali.pipeline import Pipeline
    from nvidia.dali.types import DALIDataType, DALIInterpType

    on_gpu = device.type == "cuda"
    pipeline: Any = Pipeline(BATCH, threads, device_id=(device.index or 0) if on_gpu else None, prefetch_queue_depth=1)
    with pipeline:
        jpegs = fn.external_source(name="jpegs", batch=True, dtype=DALIDataType.UINT8, ndim=1)
        images: Any = fn.decoders.image(jpegs, device="mixed" if on_gpu else "cpu")
        if side is not None:
            linear = DALIInterpType.INTERP_LINEAR
            images = fn.resize(images, size=(side, side), interp_type=linear, antialias=True)
        pipeline.set_outputs(images)
    pipeline.build()
    arrays = [np.frombuffer(blob, dtype=np.uint8) for blob in blobs]
    batches = [arrays[start : start + BATCH] for start in range(0, len(arrays), BATCH)]

    def call(i: int) -> None:
        for batch in batches:
            pipeline.feed_input("jpegs", batch)
            pipeline.schedule_run()
            pipeline.outputs()

    return call


def preparations(source: JpegSource, folder: Path, threads: int, device: torch.device) -> dict[str, Call]:
    """Return what turns all files of the source into a store on disk, and decoders that only decode them."""

    def run(kind: Kind, i: int) -> None:
        store = folder / f"{kind}-{threads}"
        shutil.rmtree(store, ignore_errors=True)
        prepare_into(source.listing, store, size=SIDE, kind=kind, device=device.type, log=lambda text: None)

    decoded = decoders(source.blobs, threads, device)
    found: dict[str, Call] = {f"prepare {kind}": partial(run, kind) for kind in ("raw", "jpeg")}
    return found | {f"decode only, {name}": call for name, call in decoded.items() if name != "Pillow"}


def feeds(source: JpegSource, folder: Path, threads: int, device: torch.device) -> dict[str, Call]:
    """Return every way from the same images to training batches of `BATCH`, from side 256 to crops of 227.

    This project's batches are bfloat16 in blocks of 4 x 4 pixels, less a mean image. The others, see `loaders`, do
    less: float32, no blocks, a mean colour. Of PyTorch's DataLoaders three read the source's files and resize each
    image for each batch; two read JPEGs of side 256, the images of the jpeg store in a file each; the fastest reads the
    decoded images of the raw store from one array in memory.
    """
    raw, jpeg = (_store(source, folder / f"store-{kind}", kind) for kind in ("raw", "jpeg"))
    assert isinstance(jpeg.train, JpegStorePart) and isinstance(raw.train, RawStorePart)
    files = []
    for row in range(len(jpeg.train)):
        files.append(make_folder(folder / "files" / "all") / f"{row:06d}.jpg")
        files[-1].write_bytes(jpeg.train.read(row))
    workers = 0 if threads == 1 else threads
    originals = [source.listing.source / image.path for image in source.listing.train + source.listing.val]
    decoded = raw.train.gather(np.arange(len(raw.train)))
    ways = {
        "DataLoader as usual": loaders.as_usual(source.listing.source, SIDE, CROP, BATCH, workers),
        "DataLoader + draft": loaders.dataloader(originals, partial(loaders.reduced, side=SIDE), CROP, BATCH, workers),
        "DataLoader + v2 resize": loaders.dataloader(
            originals, partial(loaders.resized, side=SIDE), CROP, BATCH, workers
        ),
        "DataLoader + Pillow": loaders.dataloader(files, loaders.with_pillow, CROP, BATCH, workers),
        "DataLoader + torchvision": loaders.dataloader(files, loaders.with_torchvision, CROP, BATCH, workers),
        "DataLoader + arrays": loaders.of_arrays(decoded, CROP, BATCH),
    }
    found = {"fasttransfer raw": training(raw, "raw", threads, device)}
    if has_dali():
        found["fasttransfer jpeg"] = training(jpeg, "jpeg", threads, device)
    found |= {name: lambda i, batches=batches: next(batches) for name, batches in ways.items()}  # type: ignore[misc]
    if has_dali():
        dali = loaders.dali(files, CROP, BATCH, threads, device)
        found["DALI"] = lambda i: dali()
    least = BATCH * 3 * (CROP**2 + 2 * (BLOCK * CAFFENET.blocks) ** 2)
    return found | {"copy": copying(least, device)}


def training(store: Store, kind: Kind, threads: int, device: torch.device) -> Call:
    """Return one training batch per call, of all images of a store."""
    feed: Callable[..., Feed] = MemoryFeed if kind == "raw" else partial(DaliFeed, threads=threads)
    part = store.train
    every = TaskImages(part, np.arange(len(part)), part.labels)
    order, views = (randomness.key(0, "bench-data", i) for i in range(2))
    made = feed(
        every,
        every,
        Stream(order, views, len(part), BATCH, SIDE - CROP),
        {"A": torch.rand(SIDE, SIDE, 3) * 255},
        crop=CROP,
        scale=1.0,
        device=device,
        block=BLOCK,
        side=CAFFENET.blocks,
        dtype=torch.bfloat16,
    )
    steps = itertools.count()
    return lambda i: made.train(next(steps))


def _store(source: JpegSource, folder: Path, kind: Kind) -> Store:
    """Return the images as a store, which is prepared once for all feeds."""
    if folder.exists():
        return Store.open(folder)
    return prepare_into(source.listing, folder, size=SIDE, kind=kind, log=lambda text: None)
