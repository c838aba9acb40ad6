"""Class folders with folders inside, and class names in two Unicode spellings."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from sources import by_class, listing_refusal, write

from fasttransfer.pipelines.layouts import list_images

CAFE = unicodedata.normalize("NFC", "café")
OTHER_CAFE = unicodedata.normalize("NFD", "café")


@pytest.mark.parametrize("part", ["", "train/"])
def test_folders_that_hold_classes_are_refused_as_classes(tmp_path: Path, part: str) -> None:
    files = by_class(f"{part}animals/", ("ant", "bee"), 2) | by_class(f"{part}plants/", ("ash", "oak"), 2)
    said = listing_refusal(write(tmp_path, files))
    assert "animals/ant, animals/bee, plants/ash and 1 more" in said and "move those up" in said


def test_parts_inside_class_folders_are_refused(tmp_path: Path) -> None:
    files = by_class("cat/", ("train", "test"), 2) | by_class("dog/", ("train", "test"), 2)
    assert "class cat has the parts test, train inside" in listing_refusal(write(tmp_path, files))


def test_one_folder_of_the_same_name_in_each_class_is_silent(tmp_path: Path) -> None:
    found = list_images(write(tmp_path, by_class("train/", ("a", "b"), 2, inside="images/")))
    assert len(found.train) + len(found.val) == 4 and "no validation part" in found.notes[0] and len(found.notes) == 1


@pytest.mark.parametrize("second", ["left", "more"])
def test_other_folders_inside_class_folders_are_counted_in_a_note(tmp_path: Path, second: str) -> None:
    files = by_class("cat/", ("left", "right"), 2) | by_class("dog/", (second, "right"), 2)
    found = list_images(write(tmp_path, files))
    assert found.classes == ("cat", "dog") and len(found.train) + len(found.val) == 8
    assert found.notes[0].startswith("8 images lie in folders inside class folders (cat/left, cat/right, dog/")


def test_parts_agree_on_classes_that_are_spelled_in_two_ways(tmp_path: Path) -> None:
    assert CAFE != OTHER_CAFE
    write(tmp_path, by_class("train/", (CAFE, "bar"), 2) | by_class("val/", (OTHER_CAFE, "bar"), 1))
    found = list_images(tmp_path)
    assert found.classes == ("bar", CAFE)
    assert [(each.path, each.label) for each in found.val] == [("val/bar/0.jpg", 0), (f"val/{OTHER_CAFE}/0.jpg", 1)]


def test_two_spellings_of_a_class_in_one_part_are_refused(tmp_path: Path) -> None:
    write(tmp_path, by_class("", (CAFE, OTHER_CAFE, "bar"), 2))
    assert "two Unicode spellings" in listing_refusal(tmp_path)
