"""Decode the bytes of an image file to uint8 RGB of the store's size, or give the reason why that fails.

The store holds what a viewer shows: the camera's orientation mark is applied (Caffe ignored it), transparent parts are
laid on white, 16-bit values keep their upper eight bits.

simplejpeg decodes JPEGs without peculiarities (see `jpeg_header`), because it passes on libjpeg's warnings of damage
inside; Pillow, which drops them, decodes everything else, and decides about what simplejpeg refuses. Where both can,
they give the same pixels; one operator resizes them.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from fasttransfer.core.progress import Log
from fasttransfer.pipelines.jpeg_header import ordinary_jpeg
from fasttransfer.pipelines.jpeg_warnings import is_damage, is_suspicious

Pixels = NDArray[np.uint8]

FORMATS = ("JPEG", "PNG", "BMP", "DIB", "WEBP", "PPM", "TIFF", "GIF")
FITS = ("stretch", "crop")
# Pillow's limit for a decompression bomb. It also bounds the pixels of all images that are being decoded at a time: at
# ten bytes per pixel, which a progressive JPEG takes in Pillow, that is 0.9 GB.
MOST_PIXELS = 89_478_485

_ORIENTATION = 0x0112
_TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
_STRIP = 1 << 20  # pixels converted to RGB at a time


class ImageError(Exception):
    """An image that cannot be decoded; the message is the reason, without the image's name."""


def ignore(text: str) -> None:
    """Do nothing with a warning."""


def decode(data: bytes, size: int, fit: str = "stretch", warn: Log = ignore) -> Pixels:
    """Return an image as (size, size, 3) uint8 RGB, resized (bilinear with antialias) unless it has that size.

    Of several frames the first counts. Thread-safe; threads wait for each other only where images are so large that
    memory could run out.

    Args:
        fit: "stretch" shows all of the image and does not keep its aspect, as Caffe did; "crop" shows the square in
            its middle.
        warn: called with a sentence about an image that was decoded but may be damaged.

    Raises:
        ImageError: see `decoded`.
    """
    with decoded(data, warn) as (pixels, turn):
        return _turn(_fit(pixels, size, fit), turn)


@contextmanager
def decoded(data: bytes, warn: Log = ignore) -> Iterator[tuple[Pixels, Image.Transpose | None]]:
    """Yield an image's pixels, (H, W, 3) uint8 RGB, and how to turn them upright; None: they are.

    Images that are decoded at a time are bounded; one counts until the context ends.

    Args:
        warn: see `decode`.

    Raises:
        ImageError: truncated or otherwise damaged, not an image, a decompression bomb, a kind of pixel without an
            agreed meaning.
    """
    header = ordinary_jpeg(data)
    if header is not None and header.height * header.width <= MOST_PIXELS:
        with _room.reserve(header.height * header.width):
            fast, warning = _decode_fast(data)
            if is_damage(warning):
                raise ImageError(f"pixels are lost ({warning})")
            if is_suspicious(warning):
                warn(f"pixels may be lost ({warning})")
            if fast is not None:
                yield fast, _TURN.get(header.orientation)
                return
    with open_image(data) as opened, _room.reserve(opened.width * opened.height):
        try:
            opened.load()
            # After loading: Pillow turns a TIFF by itself and then removes its mark.
            orientation = _orientation(opened)
            image = _to_rgb(opened)
        except ImageError:
            raise
        except Exception as error:  # damaged bytes make Pillow raise nearly anything
            raise ImageError(_reason(error)) from error
        yield image, _TURN.get(orientation)


def decode_or_error(data: bytes, size: int, fit: str, warn: Log = ignore) -> Pixels | ImageError:
    """Return the result of `decode`, or the error that it raises."""
    try:
        return decode(data, size, fit, warn)
    except ImageError as error:
        return error


class _Room:
    """A bounded number of pixels that threads reserve, first come, first served."""

    def __init__(self, pixels: int) -> None:
        self._free = pixels
        self._queue, self._changed = threading.Lock(), threading.Condition()

    @contextmanager
    def reserve(self, pixels: int) -> Iterator[None]:
        """Wait until so many pixels are free; hold them within the context."""
        with self._queue, self._changed:
            self._changed.wait_for(lambda: self._free >= pixels)
            self._free -= pixels
        try:
            yield
        finally:
            with self._changed:
                self._free += pixels
                self._changed.notify()


_room = _Room(MOST_PIXELS)


def _decode_fast(data: bytes) -> tuple[Pixels | None, str]:
    """Return an ordinary JPEG as (H, W, 3) uint8, None where libjpeg refuses it, and its warning, "" for none."""
    try:
        return simplejpeg.decode_jpeg(data, "RGB"), ""
    except ValueError as error:
        warning = " ".join(str(error).split())
    try:
        return simplejpeg.decode_jpeg(data, "RGB", strict=False), warning
    except ValueError:
        return None, ""


def _fit(pixels: Pixels, size: int, fit: str) -> Pixels:
    # Here, because importing PyTorch takes longer than most commands that only look at images.
    import torch

    from fasttransfer.ops import resize

    return resize(torch.from_numpy(pixels), size, visible_box(fit, *pixels.shape[:2])).numpy()


def _turn(pixels: Pixels, turn: Image.Transpose | None) -> Pixels:
    """Return a square image turned: after the resize, when there is less to turn."""
    return pixels if turn is None else np.array(Image.fromarray(pixels).transpose(turn))


def visible_box(fit: str, height: int, width: int) -> tuple[int, int, int, int]:
    """Return the part of an image that is shown: its top, left, height and width."""
    if fit == "stretch":
        return 0, 0, height, width
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side


def open_image(data: bytes) -> Image.Image:
    """Return the image with its header read and its pixels not yet decoded.

    Raises:
        ImageError: empty, not an image, or with more than `MOST_PIXELS` pixels.
    """
    if not data:
        raise ImageError("the file is empty")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        if data.startswith(b"\xff\xd8\xff"):
            raise ImageError("a JPEG whose header is damaged, cut off or of a rare kind") from None
        raise ImageError("not an image of a known format") from None
    except Image.DecompressionBombError:
        raise ImageError(f"more than {MOST_PIXELS // 1_000_000} million pixels") from None
    except Exception as error:
        raise ImageError(_reason(error)) from error
    if image.width * image.height > MOST_PIXELS:
        raise ImageError(f"{image.width} x {image.height}: more than {MOST_PIXELS // 1_000_000} million pixels")
    return image


def _orientation(image: Image.Image) -> Any:
    try:
        return image.getexif().get(_ORIENTATION)
    except Exception:  # damaged metadata does not make an image bad
        return None


def _to_rgb(image: Image.Image) -> Pixels:
    """Return (H, W, 3) uint8; converts strip by strip, because that takes several times the memory of the pixels."""
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    rows = max(1, _STRIP // image.width)
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        whole = bottom - top == image.height
        strip = image if whole else image.crop((0, top, image.width, bottom))
        pixels[top:bottom] = np.asarray(_strip_to_rgb(strip, image.format))
    return pixels


def _strip_to_rgb(image: Image.Image, kind: str | None) -> Image.Image:
    if image.mode in _SIXTEEN_BITS or (image.mode == "I" and kind in ("PNG", "PPM")):
        # Pillow's own conversion clips at 255, which turns nearly all of a 16-bit image white.
        grey = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if image.mode in ("I", "F"):
        raise ImageError(f"pixels of mode {image.mode} have no agreed black and white")
    if image.has_transparency_data:
        over = image.convert("RGBA")
        white = Image.new("RGBA", over.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, over).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text[:200] if text else type(error).__name__
