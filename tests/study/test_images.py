"""The images that --data may name."""

from __future__ import annotations

from pathlib import Path

import pytest
from studies import MANMADE, NATURAL, draw_images

from fasttransfer.core.errors import InputError
from fasttransfer.pipelines.prepare import prepare_into
from fasttransfer.pipelines.store import Kind
from fasttransfer.study import images
from fasttransfer.study.recipe import default_recipe

CLASSES = NATURAL + MANMADE


def test_the_built_in_images() -> None:
    found = images.find_source("builtin")
    assert (found.name, found.where, found.is_small, len(found.classes)) == ("builtin", "builtin", True, 32)
    assert found.count("train", found.classes) == 32 * images.BUILTIN_TRAIN
    assert found.listing is None and found.store is None


@pytest.mark.parametrize("kind", ["raw", "jpeg"])
def test_a_store_and_its_source_are_the_same_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    draw_images(tmp_path / "birds", CLASSES, train=4, val=2)
    prepare_into(tmp_path / "birds", tmp_path / "kept", size=16, kind=kind, log=lambda text: None)
    monkeypatch.chdir(tmp_path)
    source, store = images.find_source("birds"), images.find_source("kept")
    assert (source.name, store.name) == ("birds", "kept")
    assert (source.where, store.where) == (str(tmp_path / "birds"), str(tmp_path / "kept"))
    assert source.classes == store.classes == CLASSES
    assert source.words == store.words
    assert source.per_class == store.per_class == {"train": (4,) * 6, "val": (2,) * 6}
    assert store.count("train", CLASSES[:2]) == 8 and store.count("train", CLASSES[:2], 3) == 6
    assert source.listing is not None and store.store is not None


@pytest.mark.parametrize(("size", "recipe"), [(256, "caffe"), (64, "mini"), (32, "mini")])
def test_the_recipe_of_a_store_follows_its_size(tmp_path: Path, size: int, recipe: str) -> None:
    source = draw_images(tmp_path / "images", ("cat", "dog"), train=2, val=1)
    prepare_into(source, tmp_path / "store", size=size, log=lambda text: None)
    found = images.find_source(str(tmp_path / "store"))
    assert default_recipe(None, is_small=found.is_small) == recipe


@pytest.mark.parametrize(
    ("place", "data"), [("birds", "."), ("birds/train", ".."), ("birds", "../birds/."), (".", "./birds/")]
)
def test_the_name_of_a_source_is_that_of_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, data: str
) -> None:
    draw_images(tmp_path / "birds", CLASSES[:2], train=1, val=1)
    monkeypatch.chdir(tmp_path / place)
    assert images.find_source(data).name == "birds"


def test_data_that_is_neither_source_nor_store_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        images.find_source(str(tmp_path / "nowhere"))
    (tmp_path / "manifest.json").write_text('{"format": 1}')
    with pytest.raises(InputError, match="store format 1"):
        images.find_source(str(tmp_path))
    with pytest.raises(InputError, match="name too long"):
        images.find_source("x" * 5000)


@pytest.mark.parametrize("manifest", ['{"files": []}', "[]"])
def test_a_manifest_of_somebody_else_makes_no_store(tmp_path: Path, manifest: str) -> None:
    source = draw_images(tmp_path / "birds", CLASSES, train=2, val=1)
    (source / "manifest.json").write_text(manifest)
    assert images.find_source(str(source)).listing is not None
