"""The bytes of a picture file -> uint8 RGB of the store's size, or the reason why not.

What a viewer shows is what the store holds: the camera's orientation mark is applied (Caffe ignored it),
transparent parts are laid on white, 16-bit greys keep their upper eight bits. The aspect is not kept, as
Caffe did.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "BMP", "DIB", "WEBP", "PPM", "TIFF", "GIF")
MOST_PIXELS = 180_000_000  # more is a decompression bomb: 540 MB as RGB, for each thread

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


class PictureError(Exception):
    """A picture that cannot be decoded; the message is the reason, without the picture's name."""


def decode(data: bytes, size: int) -> NDArray[np.uint8]:
    """One picture as (size, size, 3) uint8 RGB, resized (bilinear with antialias) unless it has that size.

    Of several frames the first. Safe to call from many threads: Pillow lets go of the interpreter while
    it works.

    Raises:
        PictureError: truncated, not a picture, a decompression bomb, a kind of pixel without an agreed
        meaning.
    """
    with open_picture(data) as image:
        try:
            image.load()
            # Asked after loading: Pillow turns a TIFF by itself and then takes its mark away.
            turn = _TURN.get(_orientation(image))
            rgb = _to_rgb(image)
            if rgb.size != (size, size):
                # Resized before it is turned: the target is square, and there is less to turn.
                rgb = rgb.resize((size, size), Image.Resampling.BILINEAR)
            return np.asarray(rgb if turn is None else rgb.transpose(turn))
        except PictureError:
            raise
        except Exception as error:  # damaged bytes make Pillow raise nearly anything
            raise PictureError(_reason(error)) from error


def open_picture(data: bytes) -> Image.Image:
    """The picture with its header read and its pixels not yet decoded.

    Raises:
        PictureError: empty, not a picture, or with more than `MOST_PIXELS` pixels.
    """
    if not data:
        raise PictureError("the file is empty")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise PictureError("not a picture of a known format") from None
    except Image.DecompressionBombError:
        raise PictureError(f"more than {MOST_PIXELS // 1_000_000} million pixels") from None
    except Exception as error:
        raise PictureError(_reason(error)) from error
    if image.width * image.height > MOST_PIXELS:
        raise PictureError(f"{image.width} x {image.height}: more than {MOST_PIXELS // 1_000_000} million pixels")
    return image


def _orientation(image: Image.Image) -> Any:
    try:
        return image.getexif().get(_ORIENTATION)
    except Exception:  # a damaged note about the picture does not make it a bad picture
        return None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in _SIXTEEN_BITS or (image.mode == "I" and image.format in ("PNG", "PPM")):
        # Pillow's own conversion cuts off at 255, which turns nearly all of a 16-bit picture white.
        grey = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if image.mode in ("I", "F"):
        raise PictureError(f"pixels of mode {image.mode} have no agreed black and white")
    if image.has_transparency_data:
        over = image.convert("RGBA")
        white = Image.new("RGBA", over.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, over).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text[:200] if text else type(error).__name__
