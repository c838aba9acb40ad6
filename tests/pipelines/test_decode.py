from __future__ import annotations

import io
import zlib

import numpy as np
import pytest
from PIL import Image
from sources import encoded, jpeg, noise

from fasttransfer.pipelines.decode import PictureError, decode


def halves(mode: str, left: object, right: object, size: int = 8) -> Image.Image:
    image = Image.new(mode, (size, size), left)  # type: ignore[arg-type]
    image.paste(right, (size // 2, 0, size, size))  # type: ignore[arg-type]
    return image


def reason(data: bytes) -> str:
    with pytest.raises(PictureError) as caught:
        decode(data, 8)
    return str(caught.value)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM", "TIFF"])
def test_a_picture_of_the_wanted_size_is_left_as_it_is(kind: str) -> None:
    image = noise(3, width=8, height=8)
    pixels = decode(encoded(image, kind), 8)
    assert pixels.dtype == np.uint8 and np.array_equal(pixels, np.asarray(image))


def test_resizing_ignores_the_aspect_and_averages() -> None:
    stripes = np.zeros((40, 80, 3), np.uint8)
    stripes[:, ::2] = 255  # as fine as pixels are: without antialias some rows would be black or white
    pixels = decode(encoded(Image.fromarray(stripes), "PNG"), 8)
    assert pixels.shape == (8, 8, 3)
    assert 110 < pixels.min() <= pixels.max() < 145


@pytest.mark.parametrize(
    ("kind", "image"),
    [
        ("JPEG", halves("L", 0, 255)),
        ("PNG", halves("1", 0, 1)),
        ("PNG", halves("LA", (0, 255), (255, 255))),
        ("PNG", halves("RGBA", (0, 0, 0, 255), (90, 90, 90, 0))),  # transparent: on white
        ("PNG", halves("RGB", 0, (255, 255, 255)).quantize(2)),
        ("GIF", halves("RGB", 0, (255, 255, 255)).quantize(2)),
        ("PNG", halves("I;16", 0, 65535)),
        ("TIFF", halves("I;16", 0, 65535)),
        ("JPEG", halves("CMYK", (0, 0, 0, 255), (0, 0, 0, 0))),
        ("WEBP", halves("RGB", 0, (255, 255, 255))),
        ("MPO", halves("RGB", 0, (255, 255, 255))),
    ],
)
def test_every_kind_of_pixel_becomes_black_and_white_rgb(kind: str, image: Image.Image) -> None:
    pixels = decode(encoded(image, kind), 8).astype(int)
    assert pixels.shape == (8, 8, 3)
    assert pixels[:, :3].max() < 30 and pixels[:, 5:].min() > 225


def test_sixteen_bit_greys_keep_their_upper_bits() -> None:
    image = Image.fromarray(np.full((8, 8), 0x4040, np.uint16))
    assert np.all(decode(encoded(image, "PNG"), 8) == 0x40)


def test_palette_with_transparency_lies_on_white() -> None:
    image = halves("P", 0, 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    pixels = decode(encoded(image, "PNG", transparency=1), 8)
    assert np.all(pixels[:, :4] == 0) and np.all(pixels[:, 4:] == 255)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_orientation_is_applied_once(orientation: int, kind: str) -> None:
    corners = np.zeros((16, 16, 3), np.uint8)
    corners[:8, :8], corners[:8, 8:], corners[8:, :8] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    upright = np.asarray(Image.fromarray(corners))
    # How a camera stores an upright scene under each mark: the inverse of the turn that a viewer makes.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    choices = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif, **choices)
    assert np.abs(decode(data, 16).astype(int) - upright).max() < 8


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_does_not_make_a_bad_picture() -> None:
    data = encoded(noise(1), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xffrubbish")
    assert decode(data, 8).shape == (8, 8, 3)


def test_the_first_frame_of_several() -> None:
    frames = [Image.new("RGB", (8, 8), colour).quantize(2) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert tuple(decode(data, 8)[0, 0]) == (255, 0, 0)


def test_no_bytes() -> None:
    assert reason(b"") == "the file is empty"


def test_text_called_a_picture() -> None:
    assert reason(b"<html>404 Not Found</html>") == "not a picture of a known format"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "TIFF", "WEBP"])
def test_truncated(kind: str) -> None:
    data = encoded(noise(1, width=60, height=60), kind)
    assert reason(data[: len(data) // 2])


def test_a_decompression_bomb() -> None:
    header = b"\x89PNG\r\n\x1a\n"
    for tag, body in (
        (b"IHDR", b"\0\1\0\0\0\1\0\0\x08\x02\0\0\0"),
        (b"IDAT", zlib.compress(b"\0" * 99)),
        (b"IEND", b""),
    ):
        header += len(body).to_bytes(4, "big") + tag + body + zlib.crc32(tag + body).to_bytes(4, "big")
    assert "million pixels" in reason(header)


def test_pixels_without_agreed_white() -> None:
    memory = io.BytesIO()
    Image.fromarray(np.ones((8, 8), np.float32)).save(memory, "TIFF")
    assert "mode F" in reason(memory.getvalue())


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_flipped_bytes_are_a_bad_picture_or_a_picture_but_never_a_crash() -> None:
    random = np.random.default_rng(0)
    outcomes = set()
    for kind in ("JPEG", "PNG", "TIFF", "GIF", "WEBP", "BMP"):
        whole = encoded(noise(2, width=30, height=30), kind)
        for _ in range(60):
            data = bytearray(whole)
            for place in random.integers(0, len(data), 4):
                data[place] = random.integers(256)
            try:
                outcomes.add(decode(bytes(data), 8).shape)
            except PictureError as error:
                outcomes.add("bad" if str(error) else "bad without a reason")
    assert outcomes == {(8, 8, 3), "bad"}


def test_many_threads_agree_with_one() -> None:
    from concurrent.futures import ThreadPoolExecutor

    files = [jpeg(seed) for seed in range(64)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda data: decode(data, 16), files))
    assert all(np.array_equal(a, decode(data, 16)) for a, data in zip(together, files, strict=True))
