"""The decoder of the GPU, which runs here on the CPU: DALI decodes and refuses the same way on both."""

from __future__ import annotations

import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sources import encoded, jpeg
from strange import scene, strange

from fasttransfer.core.errors import InputError
from fasttransfer.pipelines import gpu_decoder as module
from fasttransfer.pipelines.decode import ImageError, Pixels, decode, decode_or_error
from fasttransfer.pipelines.gpu_decoder import GpuDecoder

pytest.importorskip("nvidia.dali", reason="DALI is not installed")

STRANGE = strange()
SIZE = 24


def on_cpu(fit: str = "stretch", size: int = SIZE) -> GpuDecoder:
    return GpuDecoder(size, fit, gpu=None)


def large(seed: int) -> bytes:
    """Return an ordinary JPEG, different for each seed, that is larger than the store."""
    return encoded(scene(100 + seed, 80 + seed), quality=90)


def assert_close(pixels: Pixels | ImageError, wanted: Pixels | ImageError) -> None:
    """Check images that were made smaller: equal up to rounding, except for the outermost pixel on each side."""
    assert isinstance(pixels, np.ndarray) and isinstance(wanted, np.ndarray)
    assert pixels.shape == wanted.shape and pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - wanted)[1:-1, 1:-1].max() <= 2


def count_builds(monkeypatch: pytest.MonkeyPatch) -> list[GpuDecoder]:
    built: list[GpuDecoder] = []
    build = GpuDecoder._build

    def counted(self: GpuDecoder) -> Any:
        built.append(self)
        return build(self)

    monkeypatch.setattr(GpuDecoder, "_build", counted)
    return built


@pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("fit", ["stretch", "crop"])
def test_the_gpu_decoder_refuses_what_decode_refuses(fit: str) -> None:
    """Each alone, and all at once."""
    decoder = on_cpu(fit)
    strange = {name: each for name, each in STRANGE.items() if name != "cut and ended"}  # DALI fills what is lost
    blobs = [each.data for each in strange.values()]
    for results in ([decoder([data])[0] for data in blobs], decoder(blobs)):
        for name, pixels in zip(strange, results, strict=True):
            wanted = decode_or_error(STRANGE[name].data, SIZE, fit)
            if isinstance(wanted, ImageError):
                assert isinstance(pixels, ImageError) and str(pixels) == str(wanted), name
            else:
                assert isinstance(pixels, np.ndarray) and pixels.shape == (SIZE, SIZE, 3), name
                if not STRANGE[name].ordinary:
                    assert np.array_equal(pixels, wanted), name


@pytest.mark.parametrize("fit", ["stretch", "crop"])
def test_pixels_are_those_of_the_cpu_up_to_rounding(fit: str) -> None:
    decoder = on_cpu(fit)
    blobs = [large(seed) for seed in range(3 * decoder.images // 2)]  # more than DALI gets at once
    results = decoder(blobs)
    assert len(results) == len(blobs)
    for data, pixels in zip(blobs, results, strict=True):
        assert_close(pixels, decode(data, SIZE, fit))


@pytest.mark.parametrize("fit", ["stretch", "crop"])
def test_real_images(shared: Path, fit: str) -> None:
    with tarfile.open(shared / "data" / "ilsvrc12-samples.tar") as archive:
        files = [archive.extractfile(file).read() for file in archive if file.name.endswith(".JPEG")][:40]  # type: ignore[union-attr]
    assert len(files) == 40
    for data, pixels in zip(files, on_cpu(fit, 128)(files), strict=True):
        wanted = decode(data, 128, fit)
        assert_close(pixels, wanted)
        assert np.abs(np.asarray(pixels).astype(int) - wanted).mean() < 0.5


def test_one_bad_image_does_not_spoil_its_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    built = count_builds(monkeypatch)
    decoder = on_cpu()
    good, bad = [large(seed) for seed in range(4)], STRANGE["bad table"].data
    wanted = [decode(data, SIZE) for data in good]
    first = decoder(good)
    for pixels, each in zip(first, wanted, strict=True):
        assert_close(pixels, each)
    assert len(built) == 1

    results = decoder([*good[:2], bad, *good[2:]])
    refused = results.pop(2)
    assert isinstance(refused, ImageError) and str(refused) == str(decode_or_error(bad, SIZE, "stretch"))
    assert all(np.array_equal(a, b) for a, b in zip(results, wanted, strict=True))  # by `decode`, each of them

    again = decoder(good)
    assert len(built) == 2  # a pipeline that has raised is not used again
    assert all(np.array_equal(a, b) for a, b in zip(again, first, strict=True))


def test_results_outlive_the_next_batch() -> None:
    decoder = on_cpu()
    first = decoder([large(1), large(2)])
    kept = [np.array(each) for each in first]
    decoder([large(3), large(4)])
    assert all(np.array_equal(a, b) for a, b in zip(first, kept, strict=True))


def test_nothing_and_nothing_ordinary(monkeypatch: pytest.MonkeyPatch) -> None:
    built = count_builds(monkeypatch)
    decoder = on_cpu()
    assert decoder([]) == []
    (pixels,) = decoder([STRANGE["CMYK"].data])
    assert np.array_equal(pixels, decode(STRANGE["CMYK"].data, SIZE))
    assert not built


def test_threads_have_pipelines_of_their_own() -> None:
    decoder = on_cpu()
    batches = [[large(seed), jpeg(seed), b""] for seed in range(8)]
    alone = [decoder(batch) for batch in batches]
    with ThreadPoolExecutor(decoder.threads) as pool:
        together = list(pool.map(decoder, batches))
    for a, b in zip(alone, together, strict=True):
        assert np.array_equal(a[0], b[0]) and np.array_equal(a[1], b[1])
        assert str(a[2]) == str(b[2]) == "the file is empty"


def test_few_images_and_few_pixels_go_through_dali_together() -> None:
    small, huge = (10, 10), (8000, 8000)
    assert list(module._runs({}, 3)) == []
    assert list(module._runs({0: small, 2: small, 3: small, 4: small}, 3)) == [[0, 2, 3], [4]]
    assert list(module._runs({0: huge, 1: small, 2: huge, 3: huge}, 3)) == [[0, 1], [2], [3]]


def test_without_a_gpu_or_without_dali(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(InputError, match="device cuda: PyTorch finds no GPU here: decode on the CPU"):
        GpuDecoder(8, "stretch")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(InputError, match="needs DALI, which is not installed: install nvidia-dali-cuda130"):
        GpuDecoder(8, "stretch")


@pytest.mark.gpu
@pytest.mark.parametrize("fit", ["stretch", "crop"])
def test_on_the_gpu(fit: str) -> None:
    decoder = GpuDecoder(SIZE, fit)
    blobs = [large(seed) for seed in range(70)]
    for data, pixels in zip(blobs, decoder(blobs), strict=True):
        assert_close(pixels, decode(data, SIZE, fit))
    strange_ones = decoder([each.data for each in STRANGE.values()])
    for each, pixels in zip(STRANGE.values(), strange_ones, strict=True):
        assert isinstance(pixels, ImageError) != each.good
