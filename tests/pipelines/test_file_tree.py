"""Which files of a folder or a tar are images: by name or by first bytes, and not what programs put beside them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sources import by_class, encoded, jpeg, listing_refusal, noise, pack, write

from fasttransfer.pipelines import file_tree
from fasttransfer.pipelines.layouts import Listing, list_images
from fasttransfer.pipelines.prepare import prepare_into

ANIMALS = ("cat", "dog")

in_folder_and_tar = pytest.mark.parametrize("packed", [False, True])


def listed(folder: Path, packed: bool) -> Listing:
    return list_images(pack(folder, folder.with_suffix(".tar")) if packed else folder)


def counted(listing: Listing) -> int:
    return len(listing.train) + len(listing.val)


@in_folder_and_tar
def test_images_whose_names_do_not_say_so_are_known_by_their_first_bytes(tmp_path: Path, packed: bool) -> None:
    kinds = {"000": "JPEG", "0.jpg?width=200": "PNG", "1.jpg_large": "WEBP", "2.jpg.1": "BMP", "3.JPG (1)": "TIFF"}
    odd: dict[str, bytes | str] = {
        f"train/cat/{name}": encoded(noise(seed), kind) for seed, (name, kind) in enumerate(kinds.items())
    }
    others = {f"train/cat/{name}": "BM is how some texts begin" for name in ("README", "Makefile.in", "no.image", "x")}
    files = by_class("train/", ANIMALS, 2) | by_class("val/", ANIMALS, 1) | odd | others | {"train/cat/empty": b""}
    found = listed(write(tmp_path / "source", files), packed)
    names = {image.path for image in found.train}
    assert len(names) == 4 + len(odd) and names >= odd.keys()
    assert {image.path: found.read(image) for image in found.train if image.path in odd} == odd
    assert found.notes == ()


@in_folder_and_tar
def test_images_of_unread_kinds_are_counted_by_their_first_bytes_too(tmp_path: Path, packed: bool) -> None:
    files = by_class("train/", ANIMALS, 2) | by_class("val/", ANIMALS, 1)
    files["train/cat/photo"] = b"\0\0\0\x20ftypavif\0\0\0\0"
    found = listed(write(tmp_path / "source", files), packed)
    assert counted(found) == 6 and found.notes == ("files of kinds that cannot be read left out: 1 .avif",)


def test_files_of_known_kinds_are_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Listing a million images takes a look at their names alone."""
    names = ("a.xml", "b.json", "c.txt", "d.csv", "e.tar.gz", "f.heic", "Thumbs.db", "g.npy")
    write(tmp_path, by_class("", ANIMALS, 3) | {f"cat/{name}": jpeg() for name in names})
    monkeypatch.setattr(file_tree, "_first_of_file", lambda entry: pytest.fail(f"{entry.path} was opened"))
    assert counted(list_images(tmp_path)) == 6


@in_folder_and_tar
def test_folders_of_systems_are_left_out(tmp_path: Path, packed: bool) -> None:
    names = ["@eaDir", ".thumbnails", "#recycle", "$RECYCLE.BIN", "lost+found", "__MACOSX", ".ipynb_checkpoints"]
    files = by_class("", ANIMALS, 3)
    for name in names:
        files |= {
            f"cat/{name}/0.jpg/SYNOPHOTO_THUMB_M.jpg": jpeg(),
            f"cat/{name}/1.jpg": jpeg(),
            f"{name}/0.jpg": jpeg(),
        }
    found = listed(write(tmp_path / "source", files), packed)
    assert (found.classes, counted(found)) == (ANIMALS, 6)


@pytest.mark.parametrize("name", ["Thumbs", "thumbnails"])
def test_thumbnails_beside_images_are_left_out_and_a_class_of_that_name_is_not(tmp_path: Path, name: str) -> None:
    files = by_class("", (*ANIMALS, name), 3) | {f"cat/{name}/{i}.jpg": jpeg(i) for i in range(3)}
    found = list_images(write(tmp_path / "source", files))
    assert (len(found.classes), counted(found)) == (3, 9)
    assert found.notes[0] == f"folders of thumbnails left out: cat/{name}"


def write_study(folder: Path) -> None:
    """Write the kinds of files of a study that has a report."""
    files = {"study.toml": "version = 2\n", "study.db": b"SQLite", ".lock": b"", "report/figures/curves.png": jpeg()}
    write(folder, dict(files) | {"checkpoints/": b"", "weights/baseA.s0.safetensors": b"x"})


@in_folder_and_tar
@pytest.mark.parametrize("place", ["", "train/", "train/cat/"])
def test_what_fasttransfer_wrote_is_left_out_wherever_it_lies(tmp_path: Path, place: str, packed: bool) -> None:
    source = write(tmp_path / "source", by_class("train/", ANIMALS, 3) | by_class("val/", ANIMALS, 2))
    plain = list_images(source)
    prepare_into(source, tmp_path / "store", size=8, kind="jpeg", log=lambda text: None)
    (source / place / "kept").mkdir()
    (tmp_path / "store").rename(source / place / "kept/store")
    write_study(source / place / "runs/a")
    write_study(source / place / "runs/b")
    found = listed(source, packed)
    assert (found.layout, found.classes, found.train, found.val) == (
        plain.layout,
        plain.classes,
        plain.train,
        plain.val,
    )
    assert found.notes == (
        f"folders that fasttransfer wrote left out: {place}kept/store, {place}runs/a, {place}runs/b",
    )


def test_a_study_that_was_killed_before_it_began_is_no_class(tmp_path: Path) -> None:
    source = write(tmp_path / "source", by_class("", ANIMALS, 3) | {"runs/first/.lock": b"", "cat/.lock": b""})
    found = list_images(source)
    assert (found.classes, counted(found)) == (ANIMALS, 6)
    assert found.notes[0] == "folders that fasttransfer wrote left out: runs/first"


def test_the_cache_is_no_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "source", by_class("", ANIMALS, 3) | by_class("cache/builtin/x/", ANIMALS, 3))
    (tmp_path / "link").symlink_to(source / "cache")
    monkeypatch.setenv("FASTTRANSFER_CACHE", str(tmp_path / "link"))
    found = list_images(source)
    assert (found.classes, counted(found)) == (ANIMALS, 6)
    assert counted(list_images(source / "cache/builtin/x")) == 6


def test_somebody_else_s_manifest_marks_nothing(tmp_path: Path) -> None:
    source = write(tmp_path / "source", by_class("", ANIMALS, 3) | {"cat/manifest.json": json.dumps({"files": []})})
    assert counted(list_images(source)) == 6


def test_a_study_is_no_source(tmp_path: Path) -> None:
    write_study(tmp_path / "run")
    assert "is the folder of a study, not a source of images" in listing_refusal(tmp_path / "run")
