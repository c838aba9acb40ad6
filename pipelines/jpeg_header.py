"""Recognise the JPEGs that every decoder reads alike, by their headers, without decoding a pixel.

Decoders differ in rare cases: where they look for the orientation of an image, which colours four components mean,
whether they fill the missing end of a truncated file with grey. Only images without such peculiarities go to the fast
decoders, of the CPU and of the GPU; all others go to the same slow one. So neither the pixels of an image nor its
refusal depends on the machine, but for damage inside the compressed pixels (see `jpeg_warnings`).
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

import numpy as np

_APP1, _APP2, _APP14 = 0xE1, 0xE2, 0xEE
_START_OF_SCAN = 0xDA
_PROGRESSIVE = 0xC2
_FRAMES = {0xC0, 0xC1, _PROGRESSIVE}  # baseline, extended and progressive, Huffman coded
# Frames that are lossless, hierarchical or arithmetic coded, and markers without a length.
_PECULIAR = {0x01, *range(0xC3, 0xD9)} - {0xC4, 0xC8, 0xCC}
_LUMA = {0x11, 0x21, 0x12, 0x22, 0x41, 0x42}  # 4:4:4, 4:2:2, 4:4:0, 4:2:0, 4:1:1, 4:1:0: across and down
_END = b"\xff\xd9"
_XMP_TURN = re.compile(rb"tiff:Orientation(=\"|>)[02-9]")  # XMP can hold the orientation as well


class Header(NamedTuple):
    """The header of an ordinary JPEG."""

    height: int
    width: int
    progressive: bool
    pixels: int  # offset of its first compressed pixels
    orientation: int  # the camera's mark, 1 (upright) to 8; decoders leave the pixels as they are stored


def ordinary_jpeg(data: bytes) -> Header | None:
    """Return the header of a JPEG that every decoder reads alike; None for any other file.

    An ordinary JPEG is complete with nothing after its end; baseline, extended or progressive with Huffman codes; 8
    bits; grey, or Y, Cb and Cr in one of the usual subsamplings; with at most one, sound mark of orientation.
    """
    if not (data.startswith(b"\xff\xd8") and data.endswith(_END)):
        return None
    try:
        return _scan(data)
    except (IndexError, struct.error):  # ends in the middle of a segment
        return None


def one_whole_scan(data: bytes, header: Header) -> bool:
    """Return whether an ordinary JPEG has all its pixels in one piece, without another marker between them.

    Only damage or several scans put one there. Some decoders refuse what comes after it, others ignore it.
    """
    if header.progressive:
        return False
    compressed = np.frombuffer(data, np.uint8)[header.pixels : -len(_END)]
    after = compressed[1:][compressed[:-1] == 0xFF]
    return bool(np.all((after == 0) | (after & 0xF8 == 0xD0) | (after == 0xFF)))  # data, restarts, fill


def _scan(data: bytes) -> Header | None:
    at, shape, progressive, marks = 2, None, False, set[int]()
    while True:
        if data[at] != 0xFF:
            return None
        while data[at] == 0xFF:  # any number of them may come before a marker
            at += 1
        marker = data[at]
        at += 1
        if marker in _PECULIAR:
            return None
        length = int.from_bytes(data[at : at + 2])
        if marker == _START_OF_SCAN:
            if shape is None or len(marks) > 1:
                return None
            return Header(*shape, progressive, at + length, marks.pop() if marks else 1)
        if marker in _FRAMES:
            if shape is not None or (shape := _frame(data, at + 2, length - 2)) is None:
                return None
            progressive = marker == _PROGRESSIVE
        elif marker in (_APP1, _APP2, _APP14):
            body = data[at + 2 : at + length]
            if marker == _APP1 and body.startswith(b"Exif\0"):
                if (orientation := _orientation(body[6:])) is None:
                    return None
                marks.add(orientation)
            elif not _harmless(marker, body):
                return None
        at += length


def _frame(data: bytes, at: int, length: int) -> tuple[int, int] | None:
    bits, height, width, count = struct.unpack_from(">BHHB", data, at)
    if bits != 8 or count not in (1, 3) or length != 6 + 3 * count or height == 0 or width == 0:
        return None
    if count == 3:
        names, factors = data[at + 6 : at + 15 : 3], data[at + 7 : at + 15 : 3]
        if names == b"RGB" or factors[0] not in _LUMA or factors[1:] != b"\x11\x11":
            return None
    return height, width


def _harmless(marker: int, body: bytes) -> bool:
    """Return whether a metadata segment leaves the pixels as they are."""
    if marker == _APP14:
        # "Adobe", a version, two words of flags, and the colours: 0 RGB, 1 YCbCr, 2 YCCK.
        return not body.startswith(b"Adobe") or (len(body) >= 12 and body[11] == 1)
    if marker == _APP2:
        return not body.startswith(b"MPF\0")  # more images follow
    return _XMP_TURN.search(body) is None


def _orientation(tiff: bytes) -> int | None:
    """Return the orientation in an EXIF segment, 1 where it says nothing about it; None if it is damaged."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return None
    (start,) = struct.unpack_from(order + "I", tiff, 4)
    (count,) = struct.unpack_from(order + "H", tiff, start)
    for i in range(count):
        tag, kind, values, value = struct.unpack_from(order + "HHIH", tiff, start + 2 + 12 * i)
        if tag == 0x0112:
            return value if (kind, values) == (3, 1) and 1 <= value <= 8 else None
    return 1
