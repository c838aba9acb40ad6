"""The built-in images: the same every time, all different, distinguished by shape, not by colour."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from preparing import quiet, visible

from fasttransfer.core.errors import InputError
from fasttransfer.pipelines import synthetic
from fasttransfer.pipelines.prepare import prepare_builtin
from fasttransfer.pipelines.synthetic import SIDES, image, render

# No guard round the call: starting processes by importing the main module again would never get to the end.
UNGUARDED = """
import os, sys
from pathlib import Path
from fasttransfer.pipelines import synthetic
synthetic._IMAGES_PER_PROCESS = 1
os.sched_getaffinity = lambda pid: {0, 1}
synthetic.render(Path(sys.argv[1]), train=2, val=1, size=32)
"""


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture
def two_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "_IMAGES_PER_PROCESS", 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)


@pytest.fixture(scope="module")
def sample() -> dict[str, np.ndarray]:
    """name -> (36, 48, 48, 3): 24 training images, then 12 for validation."""
    numbers = [("train", k) for k in range(24)] + [("val", k) for k in range(12)]
    return {name: np.stack([image(name, part, k, size=48) for part, k in numbers]) for name in SIDES}


def nearest_mean(sample: dict[str, np.ndarray], side: str, describe: object) -> float:
    """Top-1 on one side's validation images of the class whose mean description is nearest, in [0, 1]."""
    assert callable(describe)
    described = np.stack([describe(sample[name]) for name in SIDES if SIDES[name] == side])  # class, image, d
    train, val = described[:, :24], described[:, 24:]
    scale = train.std(axis=(0, 1)) + 1e-6
    far = np.square((val[:, :, None] - train.mean(axis=1)) / scale).sum(axis=-1)  # class, image, candidate
    return float((far.argmin(axis=-1) == np.arange(len(val))[:, None]).mean())


def test_there_are_sixteen_classes_of_each_side_with_plain_names() -> None:
    assert sorted(SIDES.values()) == ["man-made"] * 16 + ["natural"] * 16
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)?", name) for name in SIDES)


@pytest.mark.parametrize("name", SIDES)
def test_an_image_is_a_function_of_class_part_and_number(name: str) -> None:
    first = image(name, "train", 3, size=32)
    image(name, "val", 0, size=32)
    np.random.seed(1)  # nor does anything global matter
    assert np.array_equal(image(name, "train", 3, size=32), first)
    assert not np.array_equal(image(name, "val", 3, size=32), first)
    assert not np.array_equal(image(name, "train", 4, size=32), first)


@pytest.mark.parametrize("size", [32, 33, 100])
def test_any_size_from_32_works(size: int) -> None:
    for name in SIDES:
        pixels = image(name, "train", 0, size=size)
        assert pixels.shape == (size, size, 3) and pixels.dtype == np.uint8


def test_folders_are_an_image_folder(tmp_path: Path) -> None:
    lines: list[str] = []
    render(tmp_path, train=2, val=1, size=40, log=lines.append)
    wanted = {f"{part}/{name}/{k:04d}.jpeg" for name in SIDES for part, k in (("train", 0), ("train", 1), ("val", 0))}
    assert contents(tmp_path).keys() == wanted
    for path in wanted:
        with Image.open(tmp_path / path) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (40, 40))
    assert lines and "synthetic" in lines[0]


def test_more_images_and_more_processes_change_none(tmp_path: Path, two_processes: None) -> None:
    render(tmp_path / "many", train=3, val=2, size=32)
    many = contents(tmp_path / "many")
    for name in SIDES:  # in this process, and fewer
        for part in ("train", "val"):
            (tmp_path / "few" / part / name).mkdir(parents=True)
    synthetic.render_share(tmp_path / "few", train=2, val=1, size=32)
    few = contents(tmp_path / "few")
    assert len(many) == 5 * 32 and len(few) == 3 * 32
    assert all(many[path] == data for path, data in few.items())


def test_a_script_without_a_main_guard_can_render(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(UNGUARDED)
    subprocess.run([sys.executable, str(script), str(tmp_path / "out")], check=True, timeout=120)
    assert len(contents(tmp_path / "out")) == 3 * 32


def test_no_two_images_are_alike_and_none_is_blank(sample: dict[str, np.ndarray]) -> None:
    everything = np.concatenate(list(sample.values()))
    assert len({pixels.tobytes() for pixels in everything}) == len(everything)
    for name, images in sample.items():
        spread = images.mean(axis=3).std(axis=(1, 2))
        assert spread.min() > 4, f"{name} {spread.argmin()} shows nothing"


@pytest.mark.parametrize("side", ["natural", "man-made"])
def test_colour_does_not_tell_classes_apart(sample: dict[str, np.ndarray], side: str) -> None:
    assert nearest_mean(sample, side, lambda images: images.mean(axis=(1, 2))) < 0.25


@pytest.mark.parametrize("side", ["natural", "man-made"])
def test_shape_tells_classes_apart(sample: dict[str, np.ndarray], side: str) -> None:
    def spectrum(images: np.ndarray) -> np.ndarray:
        grey = images.mean(axis=3)
        power = np.abs(np.fft.rfft2(grey - grey.mean(axis=(1, 2), keepdims=True)))[:, :24, :24]
        blocks = np.log(power + 1).reshape(len(grey), 8, 3, 8, 3).mean(axis=(2, 4)).reshape(len(grey), -1)
        return blocks - blocks.mean(axis=1, keepdims=True)

    assert nearest_mean(sample, side, spectrum) > 0.3


def test_the_fingerprint_follows_the_sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = synthetic.fingerprint()
    assert synthetic.fingerprint() == before
    monkeypatch.setattr(synthetic, "__file__", str(tmp_path / "__init__.py"))
    (tmp_path / "sketch.py").write_text("DIFFICULTY = 9\n")
    assert synthetic.fingerprint() != before


@pytest.mark.parametrize(("train", "val", "size"), [(1, 1, 31), (-1, 1, 64), (0, 0, 64)])
def test_bad_sizes_and_counts_are_input_errors(tmp_path: Path, train: int, val: int, size: int) -> None:
    with pytest.raises(InputError, match="ask for"):
        render(tmp_path / "out", train=train, val=val, size=size)
    assert not (tmp_path / "out").exists()


def test_a_disk_that_takes_no_more_is_the_users_to_put_right(tmp_path: Path, two_processes: None) -> None:
    (tmp_path / "train" / "clouds" / "0001.jpeg").mkdir(parents=True)  # a folder where an image must go
    with pytest.raises(InputError, match=r"clouds/0001\.jpeg"):
        render(tmp_path, train=2, val=0, size=32)


def test_an_image_takes_no_longer_than_a_few_passes_over_its_pixels() -> None:
    """Against sines of as many pixels, on the same machine at the same time: a data set is rendered in moments."""

    def least(work: Callable[[], object]) -> float:
        """Seconds of the quickest of five, of this process alone."""
        taken = []
        for _ in range(5):
            start = time.process_time()
            work()
            taken.append(time.process_time() - start)
        return min(taken)

    pixels = np.random.default_rng(0).random((64, 64, 3))
    passes = least(lambda: [np.sin(pixels * k) for k in range(20 * len(SIDES))]) / len(SIDES)
    each = least(lambda: [image(name, "train", 0, size=64) for name in SIDES]) / len(SIDES)
    assert each < 10 * passes  # ten times what it takes


def test_builtin_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = prepare_builtin(size=32, cache=tmp_path, train=2, val=1, log=quiet)
    assert store.classes == tuple(sorted(synthetic.SIDES)) and store.size == 32
    assert np.all(np.bincount(store.train.labels) == 2) and np.all(np.bincount(store.val.labels) == 1)
    assert store.manifest["synthetic"] is True and store.manifest["held_out"] is False
    rendered = visible(tmp_path / "builtin")
    assert len(rendered) == 1

    def fail(*arguments: object, **choices: object) -> None:
        pytest.fail("rendered again")

    with monkeypatch.context() as patch:
        patch.setattr(synthetic, "render", fail)
        assert prepare_builtin(size=32, cache=tmp_path, train=2, val=1, log=quiet).digest == store.digest
    monkeypatch.setattr(synthetic, "fingerprint", lambda: "another renderer")
    prepare_builtin(size=32, cache=tmp_path, train=2, val=1, log=quiet)
    assert len(visible(tmp_path / "builtin")) == 2


def test_builtin_images_are_drawn_again_if_some_were_removed(tmp_path: Path) -> None:
    store = prepare_builtin(size=32, cache=tmp_path, train=2, val=1, log=quiet)
    shutil.rmtree(next((tmp_path / "builtin").glob("*/train/*")))
    assert prepare_builtin(size=32, cache=tmp_path, train=2, val=1, log=quiet).digest == store.digest


def test_builtin_needs_both_parts(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least one of each"):
        prepare_builtin(size=32, cache=tmp_path, train=2, val=0, log=quiet)


def test_images_stay_the_same_from_version_to_version() -> None:
    """Another seed would draw other images, and every study of the built-in images would be another study."""
    means = {name: image(name, "train", 0, size=32).mean(axis=(0, 1)) for name in ("bookshelf", "zebra-coat")}
    assert means["bookshelf"] == pytest.approx([106.22, 122.27, 150.22], abs=0.5)
    assert means["zebra-coat"] == pytest.approx([121.81, 111.79, 117.06], abs=0.5)
