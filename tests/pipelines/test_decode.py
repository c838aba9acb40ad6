from __future__ import annotations

import io
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.io
from PIL import Image
from sources import encoded, jpeg, noise
from strange import HEIGHT, WIDTH, patched, png, scene, strange
from waiting import PATIENCE

from fasttransfer.ops import resize
from fasttransfer.pipelines import decode as module
from fasttransfer.pipelines.decode import MOST_PIXELS, ImageError, decode
from fasttransfer.pipelines.jpeg_header import one_whole_scan, ordinary_jpeg

STRANGE = strange()


def halves(mode: str, left: object, right: object, size: int = 8) -> Image.Image:
    image = Image.new(mode, (size, size), left)  # type: ignore[arg-type]
    image.paste(right, (size // 2, 0, size, size))  # type: ignore[arg-type]
    return image


def reason(data: bytes, fit: str = "stretch") -> str:
    with pytest.raises(ImageError) as caught:
        decode(data, 8, fit)
    return str(caught.value)


def resized(image: Image.Image, size: int) -> np.ndarray:
    return resize(torch.from_numpy(np.array(image.convert("RGB"))), size).numpy()


@pytest.mark.parametrize("name", STRANGE)
def test_only_ordinary_jpegs_go_to_the_fast_decoders(name: str) -> None:
    data, _, ordinary = STRANGE[name]
    header = ordinary_jpeg(data)
    assert (header is not None) == ordinary
    if header is not None and STRANGE[name].good:
        image = Image.open(io.BytesIO(data))
        assert (header.height, header.width) == (image.height, image.width)
        assert header.progressive == ("progressive" in image.info)
        assert header.orientation == image.getexif().get(0x0112, 1)
        of_scan = 6 + 2 * len(image.getbands())
        assert data[header.pixels - of_scan - 2 : header.pixels - of_scan] == b"\xff\xda" or header.progressive


def test_jpegs_with_one_whole_scan() -> None:
    def whole(data: bytes) -> bool:
        header = ordinary_jpeg(data)
        assert header is not None
        return one_whole_scan(data, header)

    for name in ("plain", "grey", "1 x 1", "restart markers", "thumbnail", "comment", "cut and ended", "turned 6>"):
        assert whole(STRANGE[name].data), name
    assert not whole(STRANGE["progressive"].data)
    plain = STRANGE["plain"].data
    for marker, fine in ((0x00, True), (0xD3, True), (0xFF, True), (0xA0, False), (0xC4, False), (0xD9, False)):
        assert whole(patched(plain, len(plain) - 100, bytes([0xFF, marker, 0]))) == fine


@pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("fit", ["stretch", "crop"])
@pytest.mark.parametrize("name", STRANGE)
def test_strange_images_and_the_same_from_both_decoders(name: str, fit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data, good, _ = STRANGE[name]
    if not good:
        message, fast = reason(data, fit), module._decode_fast
        monkeypatch.setattr(module, "_decode_fast", lambda data: (None, fast(data)[1]))
        assert message and message == reason(data, fit)
        return
    pixels = decode(data, 24, fit)
    assert pixels.shape == (24, 24, 3) and pixels.dtype == np.uint8
    monkeypatch.setattr(module, "_decode_fast", lambda data: (None, ""))
    assert np.array_equal(pixels, decode(data, 24, fit))


def test_ordinary_images_do_not_reach_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(data: bytes) -> Image.Image:
        raise AssertionError("Pillow was used")

    monkeypatch.setattr(module, "open_image", refuse)
    for name, each in STRANGE.items():
        if each.good and each.ordinary:
            assert decode(each.data, 8).shape == (8, 8, 3), name


def test_pixels_are_pillow_s_where_it_needs_no_help() -> None:
    names = ["plain", "progressive", "grey", "4:1:1", "RGB", "CMYK", "YCCK", "PNG", "several images", "thumbnail"]
    for name in names:
        data = STRANGE[name].data
        assert np.array_equal(decode(data, 30), resized(Image.open(io.BytesIO(data)), 30)), name


def test_four_colours_are_not_taken_for_their_negatives() -> None:
    for name in ("CMYK", "RGB"):
        away = np.abs(decode(STRANGE[name].data, 20).astype(int) - decode(STRANGE["PNG"].data, 20))
        assert away.mean() < 12, name


def test_bombs_are_refused_by_their_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("it was decoded"))
    monkeypatch.setattr(module, "_decode_fast", lambda data: pytest.fail("it was decoded"))
    for name in ("bomb", "PNG bomb"):
        assert reason(STRANGE[name].data) == "more than 89 million pixels"


def test_a_cut_image_says_so() -> None:
    assert "truncated" in reason(STRANGE["plain cut at 93 %"].data)
    message = reason(STRANGE["cut where its thumbnail ends"].data)
    assert message == "a JPEG whose header is damaged, cut off or of a rare kind"


def test_sixteen_bits_keep_their_upper_eight() -> None:
    assert decode(STRANGE["colour PNG of 16 bits"].data, 1).tolist() == [[[0x40, 0x80, 0xFF]]]
    assert decode(png(16, 0, 1, 1, b"\0\x40\x40"), 1).tolist() == [[[0x40, 0x40, 0x40]]]


def test_crop_is_the_square_in_the_middle() -> None:
    left = (WIDTH - HEIGHT) // 2
    for kind in ("JPEG", "PNG"):
        image = Image.open(io.BytesIO(encoded(scene(), kind)))
        wide = image.crop((left, 0, left + HEIGHT, HEIGHT))
        assert np.array_equal(decode(encoded(scene(), kind), 20, "crop"), resized(wide, 20))
        tall = scene().transpose(Image.Transpose.ROTATE_90)
        image = Image.open(io.BytesIO(encoded(tall, kind))).crop((0, left, HEIGHT, left + HEIGHT))
        assert np.array_equal(decode(encoded(tall, kind), 20, "crop"), resized(image, 20))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_strips_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """All formats that only Pillow decodes, with and without transparency and palettes."""
    files = [each.data for each in STRANGE.values() if each.good and not each.ordinary]
    clear = scene().convert("RGBA")
    clear.putalpha(scene().convert("L"))
    palette = scene().quantize(16)
    files += [encoded(clear, "PNG"), encoded(clear.convert("LA"), "PNG"), encoded(palette, "GIF")]
    files += [encoded(palette, "PNG", transparency=3), encoded(scene().convert("1"), "TIFF")]
    whole = [decode(data, 20) for data in files]
    monkeypatch.setattr(module, "_STRIP", WIDTH * 4)
    assert all(np.array_equal(decode(data, 20), pixels) for data, pixels in zip(files, whole, strict=True))


def test_where_torchvision_refuses_pillow_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(data: torch.Tensor, mode: str) -> torch.Tensor:
        raise RuntimeError("not today")

    wanted = resized(Image.open(io.BytesIO(jpeg(1))), 8)
    monkeypatch.setattr(torchvision.io, "decode_jpeg", refuse)
    assert np.array_equal(decode(jpeg(1), 8), wanted)


def test_real_images_are_the_same_from_both_decoders(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tarfile.open(shared / "data" / "ilsvrc12-samples.tar") as archive:
        files = [archive.extractfile(file).read() for file in archive if file.name.endswith(".JPEG")][:100]  # type: ignore[union-attr]
    assert len(files) == 100
    assert sum(ordinary_jpeg(data) is not None for data in files) > 95
    fast = [decode(data, 64) for data in files]
    monkeypatch.setattr(module, "_decode_fast", lambda data: (None, ""))
    for data, pixels in zip(files, fast, strict=True):
        assert np.array_equal(pixels, decode(data, 64))


def test_a_large_image_waits_for_room_and_is_not_overtaken(monkeypatch: pytest.MonkeyPatch) -> None:
    room = module._Room(10)
    waiting, order = threading.Event(), []
    wait = room._changed.wait

    def noted(timeout: float | None = None) -> bool:
        waiting.set()
        return wait(timeout)

    def take(pixels: int) -> None:
        with room.reserve(pixels):
            order.append(pixels)

    monkeypatch.setattr(room._changed, "wait", noted)
    with ThreadPoolExecutor(2) as pool:
        with room.reserve(8):
            large = pool.submit(take, 5)
            assert waiting.wait(PATIENCE)
            small = pool.submit(take, 1)  # for which there is room
            order.append(8)
        large.result(PATIENCE)
        small.result(PATIENCE)
    assert order == [8, 5, 1]
    assert room._free == 10


def test_an_image_that_fails_gives_its_room_back() -> None:
    for name in ("plain cut at 93 %", "lossless", "12 bits", "bomb"):
        reason(STRANGE[name].data)
    assert module._room._free == MOST_PIXELS


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM", "TIFF"])
def test_an_image_of_the_wanted_size_is_left_as_it_is(kind: str) -> None:
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
def test_damaged_exif_does_not_make_a_bad_image() -> None:
    data = encoded(noise(1), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xffrubbish")
    assert decode(data, 8).shape == (8, 8, 3)


def test_the_first_frame_of_several() -> None:
    frames = [Image.new("RGB", (8, 8), colour).quantize(2) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert tuple(decode(data, 8)[0, 0]) == (255, 0, 0)


def test_no_bytes() -> None:
    assert reason(b"") == "the file is empty"


def test_text_called_an_image() -> None:
    assert reason(b"<html>404 Not Found</html>") == "not an image of a known format"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "TIFF", "WEBP"])
def test_truncated(kind: str) -> None:
    data = encoded(noise(1, width=60, height=60), kind)
    assert reason(data[: len(data) // 2])


def test_pixels_without_agreed_white() -> None:
    memory = io.BytesIO()
    Image.fromarray(np.ones((8, 8), np.float32)).save(memory, "TIFF")
    assert "mode F" in reason(memory.getvalue())


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_flipped_bytes_are_a_bad_image_or_an_image_but_never_a_crash() -> None:
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
            except ImageError as error:
                outcomes.add("bad" if str(error) else "bad without a reason")
    assert outcomes == {(8, 8, 3), "bad"}


def test_many_threads_agree_with_one() -> None:
    files = [jpeg(seed) for seed in range(64)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda data: decode(data, 16), files))
    assert all(np.array_equal(a, decode(data, 16)) for a, data in zip(together, files, strict=True))
