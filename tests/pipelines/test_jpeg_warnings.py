"""Damage inside a JPEG: told by libjpeg's warnings, which never reach the screen."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from preparing import refusal, source_of
from sources import encoded, write
from strange import END, patched, scene, turned

from fasttransfer.pipelines.decode import ImageError, decode
from fasttransfer.pipelines.inspection import inspect
from fasttransfer.pipelines.prepare import prepare

WHOLE = encoded(scene(200, 150), quality=90)
MIDDLE = len(WHOLE) // 2
WITH_RESTARTS = encoded(scene(200, 150), quality=90, restart_marker_blocks=4)
DAMAGED = {
    "a piece is missing": WHOLE[:MIDDLE] + WHOLE[MIDDLE + 200 :],
    "cut and ended": WHOLE[: len(WHOLE) * 9 // 10] + END,
    "progressive, cut and ended": encoded(scene(200, 150), progressive=True)[:3700] + END,
    "zeros between restart markers": patched(WITH_RESTARTS, len(WITH_RESTARTS) // 2, bytes(40)),
    "turned, a piece is missing": turned(WHOLE[:MIDDLE] + WHOLE[MIDDLE + 200 :], 6),
}
SUSPICIOUS = {
    "bytes after the pixels": WHOLE[:-2] + bytes(50) + END,
    "zeros in the middle": patched(WHOLE, MIDDLE, bytes(40)),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_an_image_with_lost_pixels_is_a_bad_image_and_its_warning_is_the_reason(
    name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ImageError, match=r"^pixels are lost \(Corrupt JPEG data: "):
        decode(DAMAGED[name], 16)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", SUSPICIOUS)
def test_bytes_that_are_left_over_are_reported_and_the_image_is_kept(
    name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    warnings: list[str] = []
    assert decode(SUSPICIOUS[name], 16, warn=warnings.append).shape == (16, 16, 3)
    assert len(warnings) == 1 and "extraneous bytes before marker 0xd9" in warnings[0]
    assert capfd.readouterr().err == ""


def test_harmless_warnings_are_dropped(capfd: pytest.CaptureFixture[str]) -> None:
    warnings: list[str] = []
    old = patched(WHOLE, WHOLE.index(b"JFIF\0") + 5, b"\7\7")  # a version of JFIF that is not known
    assert np.array_equal(decode(old, 16, warn=warnings.append), decode(WHOLE, 16, warn=warnings.append))
    assert not warnings and capfd.readouterr().err == ""


def test_threads_hear_of_their_own_images(capfd: pytest.CaptureFixture[str]) -> None:
    def outcome(number: int) -> str:
        data = (WHOLE, DAMAGED["a piece is missing"], SUSPICIOUS["bytes after the pixels"])[number % 3]
        warnings: list[str] = []
        try:
            decode(data, 16, warn=warnings.append)
        except ImageError as error:
            return str(error)
        return warnings[0] if warnings else "good"

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(outcome, range(240)))
    assert [outcomes[i] for i in (0, 1, 2)] * 80 == outcomes and outcomes[0] == "good" and len(set(outcomes)) == 3
    assert capfd.readouterr().err == ""


def test_prepare_names_damaged_images(tmp_path: Path) -> None:
    files = {"train/cat/lost.jpg": DAMAGED["a piece is missing"]}
    files |= {f"train/dog/{i}more.jpg": SUSPICIOUS["zeros in the middle"] for i in range(7)}
    source = write(source_of(tmp_path / "source"), dict(files))
    said = refusal(source, tmp_path / "cache")
    assert "1 image cannot be decoded: train/cat/lost.jpg (pixels are lost (Corrupt JPEG data: premature end" in said
    lines: list[str] = []
    store = prepare(source, size=8, cache=tmp_path / "cache", bad_images="skip", log=lines.append)
    assert len(store.train) == 24 + 7
    (line,) = [line for line in lines if "may be damaged" in line]
    bad_list = store.folder.with_name(f"{store.folder.name}.bad-images.txt")
    assert "7 images may be damaged: train/dog/0more.jpg (pixels may be lost (" in line and str(bad_list) in line
    assert [line.split("\t")[0] for line in bad_list.read_text().splitlines()] == sorted(files)[1:]


def test_inspection_names_damaged_images(tmp_path: Path) -> None:
    files = {
        "train/cat/lost.jpg": DAMAGED["a piece is missing"],
        "train/dog/more.jpg": SUSPICIOUS["zeros in the middle"],
    }
    found = inspect(write(source_of(tmp_path / "source", 2), dict(files)))
    assert [path for path, _ in found.bad] == ["train/cat/lost.jpg"]
    assert found.notes[-1].startswith("train/dog/more.jpg: pixels may be lost (")
