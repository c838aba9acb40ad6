"""Make small sources of images for tests: real encoded files, as a folder or packed into a tar."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fasttransfer.core.errors import InputError
from fasttransfer.pipelines.layouts import list_images


def noise(seed: int, *, width: int = 10, height: int = 8) -> Image.Image:
    """Return an image of noise, different for each seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str = "JPEG", **choices: Any) -> bytes:
    """Return the bytes of the image's file."""
    memory = io.BytesIO()
    image.save(memory, kind, **choices)
    return memory.getvalue()


def jpeg(seed: int = 0) -> bytes:
    """Return the bytes of a small JPEG."""
    return encoded(noise(seed))


def write(folder: Path, files: Mapping[str, bytes | str]) -> Path:
    """Write the files, by path below `folder`; a path that ends with "/" makes an empty folder."""
    for name, data in files.items():
        path = folder / name
        if name.endswith("/"):
            path.mkdir(parents=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
    return folder


def by_class(part: str, classes: Iterable[str], count: int, *, inside: str = "") -> dict[str, bytes | str]:
    """Return `count` JPEGs for each class as `part/<class>/inside/<number>.jpg`."""
    return {
        f"{part}{name}/{inside}{number}.jpg": jpeg(1000 * index + number)
        for index, name in enumerate(classes)
        for number in range(count)
    }


def listing_refusal(source: Path) -> str:
    """Return the sentence with which `list_images` refuses a source."""
    with pytest.raises(InputError) as caught:
        list_images(source)
    message = str(caught.value)
    assert "\n" not in message
    return message


def pack(folder: Path, archive: Path, *, top: str = "", mode: Any = "w") -> Path:
    """Pack the contents of `folder`, below `top` ("" for none), with every folder a member as tar itself does."""
    with tarfile.open(archive, mode) as file:
        for path in sorted(folder.rglob("*"), key=os.fsencode):
            name = str(path.relative_to(folder))
            file.add(path, f"{top}/{name}" if top else name, recursive=False)
    return archive
