"""The request for a store: which images become it by which choices, and the keys by which a store is known."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import xxhash

from fasttransfer.pipelines.layouts import ImageFile, Listing
from fasttransfer.pipelines.shard_writer import images_per_shard
from fasttransfer.pipelines.store import PARTS, Kind

_KEY_VERSION = 1  # enters keys; it outlives the files' format, so that a store of an older format is met and replaced
_LINES = 1000  # images whose lines are digested at a time


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

    @property
    def key(self) -> str:
        """A digest of all that determines the store, computed without opening a single image."""
        return self._digests[0]

    @property
    def file_list(self) -> str:
        """A digest of the parts, labels, paths, sizes and times of the images."""
        return self._digests[1]

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
        names = ["fasttransfer", "numpy", "pillow", "torch", "torchvision"]
        versions = {"python": platform.python_version()} | {name: version(name) for name in names}
        if self.device == "cuda":
            for name in ("nvidia-dali-cuda130", "nvidia-dali-cuda120"):
                try:
                    versions[name] = version(name)
                except PackageNotFoundError:
                    continue
        return versions

    @property
    def key_head(self) -> bytes:
        """The part of the key that comes before the images."""
        listing, words = self.listing, sorted(self.listing.words.items())
        head: list[Any] = [_KEY_VERSION, self.size, self.bad_images, str(listing.source.resolve()), listing.layout]
        head += [listing.classes, words]
        if (self.kind, self.fit) != ("raw", "stretch"):
            head += [self.kind, self.fit]
        return json.dumps(head).encode()

    @cached_property
    def _digests(self) -> list[str]:
        return digest_requests(self.listing, [self.key_head, b""])


def digest_requests(listing: Listing, heads: Sequence[bytes]) -> list[str]:
    """Return a digest of each head followed by the parts, labels, paths, sizes and times of the images."""
    states = [xxhash.xxh3_128(head) for head in heads]
    for part in PARTS:
        images: tuple[ImageFile, ...] = getattr(listing, part)
        for start in range(0, len(images), _LINES):
            lines = []
            for image in images[start : start + _LINES]:
                file = listing.tree.images[image.path]
                lines.append(f"{part}\0{image.label}\0{image.path}\0{file.size}\0{file.mtime_ns}\n")
            some = os.fsencode("".join(lines))
            for state in states:
                state.update(some)
    return [state.hexdigest() for state in states]


def archive_stamp(source: Path) -> list[int] | None:
    """Return the size and time of an archive; None for a folder, whose files have their own."""
    if source.is_dir():
        return None
    status = source.stat()
    return [status.st_size, status.st_mtime_ns]
