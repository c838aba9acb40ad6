"""The request for a store: which images become it by which choices, and the keys by which a store is known."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import xxhash

from fasttransfer.core.machine import version
from fasttransfer.pipelines.layouts import Listing
from fasttransfer.pipelines.shard_writer import images_per_shard
from fasttransfer.pipelines.store import Kind

_KEY_VERSION = 1  # enters keys; it outlives the files' format, so that a store of an older format is met and replaced


@dataclass(frozen=True)
class StoreRequest:
    """The images of a store and what to make of them, see `fasttransfer.pipelines.prepare.prepare`."""

    listing: Listing
    size: int
    kind: Kind
    fit: str
    bad_images: str
    device: str
    synthetic: bool

    @property
    def images(self) -> int:
        """The number of images of both parts."""
        return len(self.listing.train) + len(self.listing.val)

    @cached_property
    def digests(self) -> tuple[str, str]:
        """The key, a digest of all that determines the store, and one of the list of files alone.

        Neither needs an image to be opened: parts, labels, paths, sizes and times stand for the images.
        """
        listing, words = self.listing, sorted(self.listing.words.items())
        head: list[Any] = [_KEY_VERSION, self.size, self.bad_images, str(listing.source.resolve()), listing.layout]
        head += [listing.classes, words]
        if (self.kind, self.fit) != ("raw", "stretch"):
            head += [self.kind, self.fit]
        key, file_list = xxhash.xxh3_128(json.dumps(head).encode()), xxhash.xxh3_128()
        for part, images in listing.parts.items():
            for image in images:
                file = listing.tree.images[image.path]
                line = os.fsencode(f"{part}\0{image.label}\0{image.path}\0{file.size}\0{file.mtime_ns}\n")
                key.update(line)
                file_list.update(line)
        return key.hexdigest(), file_list.hexdigest()

    @property
    def key(self) -> str:
        """The name of the store in a cache, see `digests`."""
        return self.digests[0]

    @cached_property
    def identity(self) -> dict[str, Any]:
        """The JSON values that an interrupted run and its resumption must agree on."""
        source = self.listing.source.resolve()
        return {
            "key": self.key,
            "source": str(source),
            "choices": [self.size, self.kind, self.fit, self.bad_images],
            "archive": archive_stamp(source),
            "device": self.device,
            "images_per_shard": images_per_shard(self.kind, self.size),
            "versions": self.versions,
        }

    @cached_property
    def versions(self) -> dict[str, str]:
        """The versions of the libraries that decide what the store holds."""
        names = ["fasttransfer", "numpy", "pillow", "simplejpeg", "torch"]
        if self.device == "cuda":
            dali = ("nvidia-dali-cuda130", "nvidia-dali-cuda120")
            names += [name for name in dali if version(name) != "not installed"]
        return {"python": platform.python_version()} | {name: version(name) for name in names}


def archive_stamp(source: Path) -> list[int] | None:
    """Return the size and time of an archive; None for a folder, whose files have their own."""
    if source.is_dir():
        return None
    status = source.stat()
    return [status.st_size, status.st_mtime_ns]
