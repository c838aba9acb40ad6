"""Tell the files that are images by their names, and by their first bytes where a name says nothing.

Images from the web have names such as `000.jpg?width=200`, `photo.jpg_large`, or no extension at all. Opening every
file would make listing a million of them slow, so only those are opened whose extension is not a known one.
"""

from __future__ import annotations

import re

EXTENSIONS = frozenset(
    ("jpg", "jpeg", "jpe", "jfif", "png", "bmp", "webp", "ppm", "pgm", "pbm", "pnm", "tif", "tiff", "gif")
)
"""Extensions (in any case) of the files that are images."""

UNREAD = frozenset(("heic", "heif", "avif", "jxl", "jp2", "svg", "psd", "dng", "cr2", "cr3", "nef", "arw"))
"""Extensions of images to a person, which Pillow alone does not read: left out, but counted and reported."""

FIRST_BYTES = 16
"""Bytes that tell an image."""

# Extensions of files that lie beside images and are none: not opened.
_OTHERS = re.compile(
    "7z|bin|bz2|cfg|cls|conf|csv|db|docx?|gz|h5|hdf5|html?|ini|ipynb|jar|js|jsonl?|lmdb|log|mat|mdb?|md5|mkv|mov|mp[34]|"
    "np[yz]|onnx|parquet|pb|pdf|pickle|pkl|ply|pth?|py|rar|rst|safetensors|sh|sha256|sqlite|srt|tar|tfrecord|tgz|toml|"
    "tsv|txt|url|wav|webm|xlsx?|xml|xz|ya?ml|zip|zst"
)

_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
_FIRST = (_JPEG, _PNG, b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*")
_UNREAD_BRANDS = {b"avif": "avif", b"heic": "heic", b"heix": "heic", b"mif1": "heif"}  # of the ISO format


def is_other_kind(name: str) -> bool:
    """Return whether the extension of a file's name, in lower case, says that it is no image."""
    return "." in name and _OTHERS.fullmatch(name.rpartition(".")[2]) is not None


def begins_like_image(begin: bytes) -> bool:
    """Return whether a file begins like a JPEG, PNG, GIF, TIFF, WebP or BMP.

    Args:
        begin: its first `FIRST_BYTES` bytes, or all that it has.
    """
    is_webp = begin.startswith(b"RIFF") and begin[8:12] == b"WEBP"
    is_bmp = begin.startswith(b"BM") and begin[6:10] == bytes(4)  # two letters alone may begin a text
    return begin.startswith(_FIRST) or is_webp or is_bmp


def begins_like_unread(begin: bytes) -> str:
    """Return the extension of an image that begins like one of `UNREAD`, else ""."""
    return _UNREAD_BRANDS.get(begin[8:12], "") if begin[4:8] == b"ftyp" else ""
