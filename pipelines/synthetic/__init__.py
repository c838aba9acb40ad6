"""The built-in images: rendered, so that everything can be tried without data.

Sixteen natural and sixteen man-made classes. Each image is a function of its class, its part ("train" or
"val"), its number and its size: image 7 of a class is the same however many are asked for, and the two
parts share none. Within a class nearly everything varies; `sketch.DIFFICULTY` says by how much.

The same machine and the same library versions give the same bytes. Elsewhere they may differ: NumPy promises
neither its distributions nor the last bits of sin and exp between versions and processors, Pillow neither its
JPEG encoder nor its resizing.
"""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from fasttransfer.core import machine
from fasttransfer.core.errors import InputError
from fasttransfer.core.files import disk_errors, make_folder
from fasttransfer.pipelines.synthetic import manmade, natural
from fasttransfer.pipelines.synthetic.sketch import Sketch

JPEG_QUALITY = 92
SMALLEST = 32  # pixels; below that a class no longer looks like its name

_PAINTERS = {**natural.CLASSES, **manmade.CLASSES}
SIDES: dict[str, str] = {**dict.fromkeys(natural.CLASSES, "natural"), **dict.fromkeys(manmade.CLASSES, "man-made")}

# With fewer images, another process costs more time than it saves.
_IMAGES_PER_PROCESS = 300


def image(name: str, part: str, index: int, *, size: int) -> NDArray[np.uint8]:
    """Return image `index` of a class, (size, size, 3) uint8 RGB, before any encoding.

    Raises:
        KeyError: no class has this name.
    """
    # "picture" is part of the seed: another word would draw other images, and studies of them would be other studies.
    digest = hashlib.blake2b(f"fasttransfer picture/{name}/{part}/{index}".encode(), digest_size=16).digest()
    rng = np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
    paint, usual = _PAINTERS[name]
    sketch = Sketch(rng, size, SIDES[name], usual)
    return sketch.finish(paint(sketch))


def fingerprint() -> str:
    """Return a digest of all that determines the images: these sources and the versions of two libraries."""
    digest = hashlib.blake2b(f"numpy {np.__version__} pillow {PIL.__version__}".encode(), digest_size=8)
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()


def render(folder: Path, *, train: int, val: int, size: int, log: Callable[[str], None] = lambda text: None) -> None:
    """Write JPEGs of every class: `folder`/train/<class>/0000.jpeg … and `folder`/val/<class>/0000.jpeg ….

    Uses every core that this process may use. The files are written in place: a caller who must never meet half a
    folder renders into a temporary one and renames it.

    Args:
        train, val: images per class.
        size: side of an image in pixels, at least 32; what is drawn scales with it.
        log: called with a line of progress.

    Raises:
        InputError: a count below zero, no image at all, a size below 32, or a disk that takes no more.
    """
    if size < SMALLEST:
        raise InputError(f"built-in images of {size} pixels are too small to show anything: ask for {SMALLEST} or more")
    if train < 0 or val < 0 or train + val == 0:
        raise InputError(
            f"{train} training and {val} validation images per class cannot be rendered: ask for at least one"
        )
    for part, count in (("train", train), ("val", val)):
        for name in SIDES if count else ():
            make_folder(folder / part / name)
    total = (train + val) * len(SIDES)
    workers = min(machine.cores(), max(total * size * size // (_IMAGES_PER_PROCESS * 64 * 64), 1))
    log(f"rendering {total} synthetic images of {len(SIDES)} classes at {size} x {size}")
    if workers == 1:
        render_share(folder, train, val, size)
        return
    # Plain processes, not multiprocessing: that imports the caller's main module again in each of them.
    numbers = [str(number) for number in (train, val, size, workers)]
    command = [sys.executable, "-P", "-m", __name__, str(folder), *numbers]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path)}
    running = [
        subprocess.Popen([*command, str(k)], env=environment, stderr=subprocess.PIPE, text=True) for k in range(workers)
    ]
    try:
        for process in running:
            _, errors = process.communicate()
            if process.returncode == 2:
                raise InputError(errors.strip())
            if process.returncode:
                raise RuntimeError(f"a process that renders images failed:\n{errors}")
    finally:
        for process in running:
            process.kill()
            process.wait()


def render_share(folder: Path, train: int, val: int, size: int, workers: int = 1, worker: int = 0) -> None:
    """Write every `workers`-th image of each class, from number `worker` on."""
    for name in SIDES:
        for part, count in (("train", train), ("val", val)):
            for index in range(worker, count, workers):
                target = folder / part / name / f"{index:04d}.jpeg"
                memory = io.BytesIO()
                Image.fromarray(image(name, part, index, size=size)).save(memory, "JPEG", quality=JPEG_QUALITY)
                with disk_errors(target):
                    target.write_bytes(memory.getvalue())
