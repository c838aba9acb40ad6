from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sources import by_class, encoded, write

from fasttransfer.core.errors import InputError
from fasttransfer.pipelines.contact_sheet import write_sheet
from fasttransfer.pipelines.layouts import list_images
from fasttransfer.pipelines.prepare import prepare

COLOURS = {"blue": (20, 40, 220), "green": (10, 200, 30), "red": (220, 30, 20)}


def plain(colour: tuple[int, int, int], *, width: int = 30, height: int = 20) -> bytes:
    return encoded(Image.new("RGB", (width, height), colour), "PNG")


def coloured(folder: Path, train: int = 9, val: int = 3) -> Path:
    """Each class in a colour of its own, darker in validation."""
    files: dict[str, bytes | str] = {}
    for name, (r, g, b) in COLOURS.items():
        files |= {f"train/{name}/{i}.png": plain((r, g, b)) for i in range(train)}
        files |= {f"val/{name}/{i}.png": plain((r // 2, g // 2, b // 2)) for i in range(val)}
    return write(folder, files)


def tiles(path: Path, row: int) -> list[tuple[int, ...]]:
    """The colours in the middle of the tiles of a row of a sheet with one column, from left to right."""
    pixels = np.asarray(Image.open(path).convert("RGB"))
    line = [tuple(map(int, pixel)) for pixel in pixels[56 + row * (96 + 24) + 48]]
    runs = [colour for colour, _ in itertools.groupby(line)]
    return [colour for colour in runs if colour != (255, 255, 255)]


def count(path: Path, colour: tuple[int, int, int]) -> int:
    pixels = np.asarray(Image.open(path).convert("RGB"))
    return int((pixels == colour).all(axis=2).sum())


def test_a_row_a_class_training_left_validation_right(tmp_path: Path) -> None:
    path = tmp_path / "sheet.png"
    write_sheet(list_images(coloured(tmp_path / "source")), path)
    for row, (r, g, b) in enumerate(COLOURS.values()):
        assert tiles(path, row) == [(r, g, b)] * 6 + [(r // 2, g // 2, b // 2)] * 2
        assert count(path, (r, g, b)) == 6 * 96 * 96
        assert count(path, (r // 2, g // 2, b // 2)) == 2 * 96 * 96


@pytest.mark.parametrize(("train", "val", "left", "right"), [(2, 9, 2, 6), (9, 1, 7, 1), (1, 1, 1, 1), (20, 20, 6, 2)])
def test_eight_images_at_most(tmp_path: Path, train: int, val: int, left: int, right: int) -> None:
    path = tmp_path / "sheet.png"
    write_sheet(list_images(coloured(tmp_path / "source", train, val)), path)
    r, g, b = COLOURS["red"]
    assert count(path, (r, g, b)) == left * 96 * 96
    assert count(path, (r // 2, g // 2, b // 2)) == right * 96 * 96


@pytest.mark.parametrize("kind", ["raw", "jpeg"])
def test_a_store_looks_like_its_source(tmp_path: Path, kind: str) -> None:
    source = coloured(tmp_path / "source")
    store = prepare(source, size=96, cache=tmp_path / "cache", kind=kind, log=lambda text: None)
    for name, what in (("source", list_images(source)), ("store", store)):
        write_sheet(what, tmp_path / f"{name}.png")
    ours, theirs = (np.asarray(Image.open(tmp_path / f"{name}.png"))[56:] for name in ("store", "source"))
    assert ours.shape == theirs.shape
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= (0 if kind == "raw" else 3)


def test_bounded_whatever_the_source(tmp_path: Path) -> None:
    many = write(tmp_path / "many", by_class("", [f"c{i:03d}" for i in range(130)], 2))
    write_sheet(list_images(many), tmp_path / "many.png")
    image = Image.open(tmp_path / "many.png")
    assert image.width <= 1700 and image.height <= 2600


def test_the_same_sheet_each_time(tmp_path: Path) -> None:
    source = write(tmp_path / "source", by_class("", [f"c{i}" for i in range(3)], 30))
    for name in ("a.png", "b.png"):
        write_sheet(list_images(source), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    write_sheet(list_images(source), tmp_path / "c.JPG")
    assert Image.open(tmp_path / "c.JPG").format == "JPEG"


def test_odd_names_and_bad_images_are_drawn(tmp_path: Path) -> None:
    names = ("Ähre", "a\nb", "\udce9t\udce9", "x" * 200)
    files: dict[str, bytes | str] = {f"{name}/{i}.png": plain((1, 2, 3)) for name in names for i in range(4)}
    write_sheet(list_images(write(tmp_path / "source", files | {"Ähre/0.png": b"<html>"})), tmp_path / "sheet.png")
    assert count(tmp_path / "sheet.png", (1, 2, 3)) == 15 * 96 * 96


def test_words_are_cut_to_the_room_there_is(tmp_path: Path) -> None:
    source = write(tmp_path / "source", by_class("train/", ("n01440764", "n01443537"), 2))
    long = "tench, " * 100
    write(source, {"words.txt": f"n01440764\t{long}", "wnids.txt": ""})
    found = list_images(source)
    assert found.words["n01440764"] == long.strip()
    write_sheet(found, tmp_path / "sheet.png")
    pixels = np.asarray(Image.open(tmp_path / "sheet.png").convert("L"))
    assert (pixels[56 + 96 :, -16:] == 255).all()  # nothing runs into the margin


def test_other_kinds_of_file_are_refused(tmp_path: Path) -> None:
    source = list_images(coloured(tmp_path / "source"))
    with pytest.raises(InputError, match=r"sheet\.gif: a contact sheet is a \.png or a \.jpg"):
        write_sheet(source, tmp_path / "sheet.gif")
    (tmp_path / "file").touch()
    for nowhere in ("file", "nothing"):
        with pytest.raises(InputError, match=f"there is no folder .*{nowhere}: make it first"):
            write_sheet(source, tmp_path / nowhere / "sheet.png")
