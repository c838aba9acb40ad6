"""Which folders of a source are its training, validation and test part, and which are classes."""

from __future__ import annotations

from pathlib import Path

import pytest
from sources import by_class, jpeg, listing_refusal, write

from fasttransfer.pipelines.ilsvrc12 import ilsvrc12, ilsvrc12_val_labels
from fasttransfer.pipelines.layouts import list_images
from fasttransfer.pipelines.parts import part_of

ANIMALS = ("cat", "dog")


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("Train", "Valid"),
        ("TRAIN", "VAL"),
        ("train", "Val"),
        ("training", "validation"),
        ("train_set", "val_set"),
        ("train", "dev"),
    ],
)
def test_parts_may_have_other_usual_names(tmp_path: Path, train: str, val: str) -> None:
    found = list_images(write(tmp_path, by_class(f"{train}/", ANIMALS, 3) | by_class(f"{val}/", ANIMALS, 2)))
    assert (found.classes, len(found.train), len(found.val), found.held_out) == (ANIMALS, 6, 4, False)
    assert found.notes == ()


@pytest.mark.parametrize("name", ["test", "Testing", "ILSVRC2012_img_test_v10102019"])
def test_a_test_part_is_left_out_and_noted(tmp_path: Path, name: str) -> None:
    files = by_class("Train/", ANIMALS, 20) | by_class(f"{name}/", ANIMALS, 2)
    found = list_images(write(tmp_path, files))
    assert (found.classes, len(found.train), len(found.val), found.held_out) == (ANIMALS, 36, 4, True)
    assert all(image.path.startswith("Train/") for image in found.train + found.val)
    assert found.notes[0] == f"test part left out: {name}" and "a tenth of each class" in found.notes[1]


def test_words_that_only_resemble_parts_are_classes(tmp_path: Path) -> None:
    names = ("contest", "devil", "tests", "trainer", "training day", "valley")
    assert list_images(write(tmp_path, by_class("", names, 2))).classes == names


def test_parts_without_class_folders_are_no_classes(tmp_path: Path) -> None:
    for number, names in enumerate((("train", "val", "test"), ("Train", "Test"), ("training", "testing"))):
        said = listing_refusal(write(tmp_path / str(number), by_class("", names, 2)))
        assert ", ".join(names) in said and "train/<class>/<image>" in said


def test_a_part_among_class_folders_is_refused_unless_it_may_be_a_class(tmp_path: Path) -> None:
    assert "test lies among class folders but" in listing_refusal(
        write(tmp_path / "a", by_class("", (*ANIMALS, "test"), 2))
    )
    for number, name in enumerate(("train", "valid", "training")):
        found = list_images(write(tmp_path / str(number), by_class("", ("car", name), 2)))
        assert found.classes == ("car", name)


@pytest.mark.parametrize("part", ["Val", "test"])
def test_a_part_alone_or_beside_classes_says_what_lacks(tmp_path: Path, part: str) -> None:
    write(tmp_path / "alone", by_class(f"{part}/", ANIMALS, 2))
    assert f"{part} has class folders but train has none" in listing_refusal(tmp_path / "alone")
    write(tmp_path / "flat", by_class("", (part,), 2))
    assert f"{part} is a {part_of(part).replace('val', 'validation')} part without a training part" in listing_refusal(
        tmp_path / "flat"
    )


def test_two_folders_for_one_part_are_refused(tmp_path: Path) -> None:
    files = by_class("train/", ANIMALS, 2) | by_class("val/", ANIMALS, 1)
    write(tmp_path / "a", files | by_class("dev/", ANIMALS, 1))
    assert "dev and val are all named like the val part" in listing_refusal(tmp_path / "a")
    write(tmp_path / "b", files | by_class("Train/", ANIMALS, 1))
    assert "Train and train are all named like the train part" in listing_refusal(tmp_path / "b")
    write(tmp_path / "c", files | {"validation/": b"", "training/cat/": b""})
    assert len(list_images(tmp_path / "c").val) == 2


def test_images_beside_the_parts_are_noted(tmp_path: Path) -> None:
    write(tmp_path, by_class("train/", ANIMALS, 2) | by_class("val/", ANIMALS, 1) | {"extra/a/1.jpg": jpeg()})
    assert list_images(tmp_path).notes == ("1 image outside the parts left out (extra/a/1.jpg)",)


@pytest.mark.parametrize("top", ["", "download/"])
def test_ilsvrc12_as_kaggle_packs_it(tmp_path: Path, top: str) -> None:
    wnids = [synset.wnid for synset in ilsvrc12()[:3]]
    labels, images = ilsvrc12_val_labels(), f"{top}ILSVRC/Data/CLS-LOC/"
    files = by_class(f"{images}train/", wnids, 2)
    files |= {f"{images}val/ILSVRC2012_val_{labels.index(label) + 1:08d}.JPEG": jpeg(label) for label in range(3)}
    files |= {f"{images}test/ILSVRC2012_test_00000001.JPEG": jpeg()}
    files |= {f"{top}ILSVRC/Annotations/CLS-LOC/train/{name}/{name}_0.xml": "<annotation/>" for name in wnids}
    files |= {f"{top}ILSVRC/ImageSets/CLS-LOC/train_cls.txt": "n01440764/n01440764_0 1\n"}
    files |= {f"{top}LOC_synset_mapping.txt": "n01440764 tench\n"}
    found = list_images(write(tmp_path, files))
    assert (found.layout, found.classes) == ("ilsvrc12", tuple(wnids))
    assert (len(found.train), len(found.val), found.held_out) == (6, 3, False)
    assert found.notes == ("test part left out: test",)


def test_parts_lie_in_one_place_or_are_classes_folders(tmp_path: Path) -> None:
    """A training part deep inside is not taken for all of the source where images lie elsewhere as well."""
    files = by_class("", ANIMALS, 2) | by_class("eel/train/", ("x", "y"), 2)
    found = list_images(write(tmp_path, files))
    assert found.classes == ("cat", "dog", "eel") and len(found.train) + len(found.val) == 8
