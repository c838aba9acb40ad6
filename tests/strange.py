"""Strange images as they are found in the wild, as real bytes, and which of them go to the fast decoders."""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

import numpy as np
from PIL import Image
from sources import encoded

WIDTH, HEIGHT = 61, 45
END = b"\xff\xd9"


class Strange(NamedTuple):
    """The bytes of a file, whether it is an image, and whether every decoder reads it alike."""

    data: bytes
    good: bool
    ordinary: bool


def scene(width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """Return smooth gradients with edges, in which each step of a decoder shows."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([x * 255 // width, y * 255 // height, (x * 7 + y * 3) % 256], -1).astype(np.uint8)
    pixels[height // 4 : height // 2, width // 3 : width // 2] = (250, 240, 20)
    return Image.fromarray(pixels)


def frame_at(data: bytes, marker: int = 0xC0) -> int:
    """Return the offset of the frame header of a JPEG."""
    return data.index(bytes([0xFF, marker]))


def patched(data: bytes, at: int, new: bytes) -> bytes:
    """Return the bytes with those from `at` on replaced by `new`."""
    return data[:at] + new + data[at + len(new) :]


def sampled(data: bytes, factors: int, width: int, height: int) -> bytes:
    """Return a JPEG with another subsampling of as many blocks: scrambled, but a JPEG as good as any."""
    at = frame_at(data)
    return patched(patched(data, at + 5, struct.pack(">HH", height, width)), at + 11, bytes([factors]))


def with_note(data: bytes, marker: int, body: bytes) -> bytes:
    """Return the JPEG with one more segment before all others."""
    return data[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body + data[2:]


def turned(data: bytes, orientation: int, order: str = ">") -> bytes:
    """Return the JPEG with a camera's orientation mark."""
    head = {">": b"MM", "<": b"II"}[order]
    entry = struct.pack(order + "HIHHHIHHI", 42, 8, 1, 0x0112, 3, 1, orientation, 0, 0)
    return with_note(data, 0xE1, b"Exif\0\0" + head + entry)


def with_thumbnail(data: bytes) -> bytes:
    """Return the JPEG with a small one inside its EXIF note, end marker and all."""
    small = encoded(scene(16, 12))
    ifd1 = struct.pack(">HHHIIHHIII", 2, 0x0201, 4, 1, 44, 0x0202, 4, 1, len(small), 0)
    return with_note(data, 0xE1, b"Exif\0\0MM" + struct.pack(">HIHI", 42, 8, 0, 14) + ifd1 + small)


def png(bits: int, kind: int, width: int, height: int, rows: bytes) -> bytes:
    """Return a PNG made of raw rows, of kinds that Pillow does not write."""
    data = b"\x89PNG\r\n\x1a\n"
    for tag, body in (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ):
        data += struct.pack(">I", len(body)) + tag + body + struct.pack(">I", zlib.crc32(tag + body))
    return data


def strange() -> dict[str, Strange]:
    """Return all of them by name."""
    plain = encoded(scene())
    progressive = encoded(scene(), progressive=True)
    cmyk = encoded(scene().convert("CMYK"))
    colours = cmyk.index(b"Adobe") + 11
    found: dict[str, tuple[bytes, bool, bool]] = {
        "plain": (plain, True, True),
        "progressive": (progressive, True, True),
        "grey": (encoded(scene().convert("L")), True, True),
        "1 x 1": (encoded(scene(1, 1)), True, True),
        "thin": (encoded(scene(300, 1)), True, True),
        "4:4:4": (encoded(scene(), subsampling="4:4:4"), True, True),
        "4:2:2": (encoded(scene(), subsampling="4:2:2"), True, True),
        "4:4:0": (sampled(encoded(scene(64, 48), subsampling="4:2:2"), 0x12, 48, 64), True, True),
        "4:1:1": (sampled(encoded(scene(64, 64), subsampling="4:2:0"), 0x41, 64, 64), True, True),
        "more luma than usual": (sampled(encoded(scene(64, 64), subsampling="4:2:0"), 0x14, 64, 64), True, False),
        "restart markers": (encoded(scene(), restart_marker_blocks=2), True, True),
        "comment": (encoded(scene(), comment=b"\xff\xd9 is no end here"), True, True),
        "thumbnail": (with_thumbnail(plain), True, True),
        "damaged note": (with_note(plain, 0xE1, b"Exif\0\0MM\0*\0\0\0\x08\xff\xffrubbish"), True, False),
        "turned by XMP": (
            with_note(plain, 0xE1, b'http://ns.adobe.com/xap/1.0/\0<rdf:Description tiff:Orientation="6"/>'),
            True,
            False,
        ),
        "upright by XMP": (
            with_note(plain, 0xE1, b'http://ns.adobe.com/xap/1.0/\0<rdf:Description tiff:Orientation="1"/>'),
            True,
            True,
        ),
        "RGB": (encoded(scene(), keep_rgb=True), True, False),
        "CMYK": (cmyk, True, False),
        "YCCK": (patched(cmyk, colours, b"\2"), True, False),
        "several images": (encoded(scene(), "MPO", save_all=True, append_images=[scene()]), True, False),
        "after the end": (plain + b"\0garbage", True, False),
        "cut and ended": (plain[: len(plain) * 9 // 10] + END, False, True),  # only warned of
        "arithmetic": (patched(plain, frame_at(plain) + 1, b"\xc9"), True, False),  # decoded to nonsense, but decoded
        "PNG": (encoded(scene(), "PNG"), True, False),
        "grey PNG of 16 bits": (png(16, 0, 2, 1, b"\0\x40\x40\xff\xff"), True, False),
        "colour PNG of 16 bits": (png(16, 2, 1, 1, b"\0\x40\x40\x80\x80\xff\xff"), True, False),
        "12 bits": (patched(plain, frame_at(plain) + 4, b"\x0c"), False, False),
        "lossless": (patched(plain, frame_at(plain) + 1, b"\xc3"), False, False),
        # Whole by its header, but with a table that cannot be.
        "bad table": (patched(plain, plain.index(b"\xff\xc4") + 5, b"\xff" * 16), False, True),
        "no height": (patched(plain, frame_at(plain) + 5, b"\0\0"), False, False),
        "empty": (b"", False, False),
        "two bytes": (b"\xff\xd8", False, False),
        "only ends": (b"\xff\xd8\xff\xd9", False, False),
        "text": (b"<html>404 Not Found</html>", False, False),
        "bomb": (patched(plain, frame_at(plain) + 5, struct.pack(">HH", 65500, 65500)), False, True),
        "PNG bomb": (png(8, 2, 65536, 65536, b"\0" * 99), False, False),
    }
    for orientation in range(1, 9):
        for order in "><":
            name = f"turned {orientation}{order}"
            found[name] = (turned(plain, orientation, order), True, True)
    for name, data in (("plain", plain), ("progressive", progressive), ("thumbnail", found["thumbnail"][0])):
        for percent in range(2, 100, 7):
            found[f"{name} cut at {percent} %"] = (data[: len(data) * percent // 100], False, False)
    thumbnail_ends = found["thumbnail"][0].index(END) + 2
    found["cut where its thumbnail ends"] = (found["thumbnail"][0][:thumbnail_ends], False, False)
    return {name: Strange(*each) for name, each in found.items()}
