from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from sources import by_class, encoded, jpeg, noise, write

from fasttransfer.core.errors import InputError
from fasttransfer.pipelines import inspection
from fasttransfer.pipelines.inspection import Spread, inspect
from fasttransfer.pipelines.prepare import prepare


def source_of(folder: Path) -> Path:
    files: dict[str, bytes | str] = by_class("", ("cat",), 3) | by_class("", ("dog",), 21)
    files["dog/big.png"] = encoded(noise(1, width=90, height=50).convert("L"), "PNG")
    files["dog/cut.jpg"] = jpeg()[:-20]
    files["dog/page.jpg"] = b"<html>"
    return write(folder, files)


def test_a_source(tmp_path: Path) -> None:
    found = inspect(source_of(tmp_path))
    assert found.layout == "image-folder"
    assert found.images == {"train": 24, "val": 3}
    assert found.per_class == {"train": Spread(2, 12.0, 22), "val": Spread(1, 1.5, 2)}
    assert "held out" in found.notes[0]
    assert found.sampled == 27
    assert found.widths == Spread(10, 10.0, 90) and found.heights == Spread(8, 8.0, 50)
    assert found.modes == {"RGB": 25, "L": 1} and found.formats == {"JPEG": 25, "PNG": 1}
    assert [path for path, _ in found.bad] == ["dog/cut.jpg", "dog/page.jpg"]
    assert "truncated" in found.bad[0][1]


def test_a_sample_is_small_and_always_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "SAMPLE", 5)
    source = write(tmp_path, by_class("", ("cat", "dog"), 40))
    assert inspect(source).sampled == 5
    assert inspect(source) == inspect(source)


def test_nothing_that_opens(tmp_path: Path) -> None:
    found = inspect(write(tmp_path, {f"{name}/{i}.jpg": b"" for name in "ab" for i in range(2)}))
    assert found.widths is None and found.heights is None and len(found.bad) == 4


def test_a_store(tmp_path: Path) -> None:
    source = source_of(tmp_path / "source")
    store = prepare(source, size=8, cache=tmp_path / "cache", bad_images="skip", log=lambda text: None)
    found = inspect(store.folder)
    assert (found.layout, found.sampled) == ("image-folder", 25)
    assert found.widths == found.heights == Spread(8, 8, 8)
    assert {path for path, _ in found.bad} == {"dog/cut.jpg", "dog/page.jpg"}
    assert found == inspect(store)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        inspect(tmp_path / "nothing")


def test_an_image_of_every_kind_is_counted(tmp_path: Path) -> None:
    files = {f"a/{i}.png": encoded(Image.new(mode, (4, 4)), "PNG") for i, mode in enumerate(("RGB", "RGBA", "P"))}
    found = inspect(write(tmp_path, {**files, "b/0.jpg": encoded(Image.new("CMYK", (4, 4))), "b/1.jpg": jpeg()}))
    assert found.modes == {"RGB": 2, "RGBA": 1, "P": 1, "CMYK": 1} and not found.bad
