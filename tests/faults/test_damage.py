"""Bits that flip on the disk between two runs: what is damaged is found before anything trains on it, and made again.

A finished study is damaged, and two of its networks are removed so that there is something to train: it must end with
the bits that it had, or with a sentence.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest
from studies import MANMADE, NATURAL, draw_images, quiet, same_study, tiny_choices
from trials import INPUT_ERROR, Outcome, Trials

from fasttransfer.core.errors import InputError
from fasttransfer.study import records

KINDS = {
    "weights": "run/weights/base*.safetensors",
    "records": "run/study.db",
    "mean images": "run/means/*.npy",
    "study": "run/study.toml",
    "pixels": "cache/stores/*/*-0000.npy",
    "labels": "cache/stores/*/*-labels.npy",
    "manifest": "cache/stores/*/manifest.json",
    "features": "cache/features/*/*.shard",
    "feature list": "cache/features/*/images.npy",
    "feature facts": "cache/features/*/entry.json",
    "cached means": "cache/means/*.npy",
}
"""Kind of file -> pattern below the folder of a trial."""
HEADER = 128  # bytes at a file's start that are hit as often as all others


@pytest.fixture(scope="module")
def place(interposer: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Callable[[], Outcome]]]:
    """A folder with a finished study in `alone`, and what trains the one in `files`."""
    folder = tmp_path_factory.mktemp("damage")
    draw_images(folder / "images", NATURAL[:2] + MANMADE[:2], train=8, val=4)
    (folder / "files").mkdir()
    with Trials(interposer) as program:
        assert program.run(folder).code == 0
        (folder / "files").rename(folder / "alone")
        yield folder, lambda: program.run(folder)


def flip(path: Path, random: Random, places: int) -> None:
    """Flip a bit of a file, or several."""
    contents = bytearray(path.read_bytes())
    for _ in range(places):
        most = min(len(contents), HEADER) if random.random() < 0.5 else len(contents)
        contents[random.randrange(most)] ^= 1 << random.randrange(8)
    path.write_bytes(contents)


def truncate(path: Path, random: Random) -> None:
    os.truncate(path, random.randrange(path.stat().st_size))


def zero_a_page(path: Path, random: Random) -> None:
    contents = bytearray(path.read_bytes())
    start = random.randrange(max(1, len(contents) // 4096)) * 4096
    contents[start : start + 4096] = bytes(len(contents[start : start + 4096]))
    path.write_bytes(contents)


DAMAGES: tuple[Callable[[Path, Random], None], ...] = (
    lambda path, random: flip(path, random, 1),
    lambda path, random: flip(path, random, 8),
    truncate,
    zero_a_page,
)


@pytest.mark.parametrize("kind", KINDS)
def test_damage_never_changes_a_result(
    place: tuple[Path, Callable[[], Outcome]], kind: str, request: pytest.FixtureRequest
) -> None:
    folder, train = place
    random = Random(f"{request.config.getoption('--fault-seed')} {kind}")
    for trial in range(request.config.getoption("--fault-trials")):
        shutil.rmtree(folder / "files", ignore_errors=True)
        shutil.copytree(folder / "alone", folder / "files")
        damaged = random.choice(sorted((folder / "files").glob(KINDS[kind])))
        DAMAGES[trial % len(DAMAGES)](damaged, random)
        for name in ("A2B+.s0", "B2B.s0"):
            (folder / "files" / "run" / "weights" / f"{name}.safetensors").unlink()
        outcome = train()
        assert outcome.code in (0, INPUT_ERROR), outcome.text
        if outcome.code:
            assert "\n" not in outcome.text and kind in ("study", "manifest")
        else:
            same_study(folder / "alone" / "run", folder / "files" / "run")


def test_mean_images_are_those_of_images_that_were_prepared_again(place: tuple[Path, Callable[[], Outcome]]) -> None:
    folder, train = place
    files = folder / "files"
    shutil.rmtree(files, ignore_errors=True)
    shutil.copytree(folder / "alone", files)
    (pixels,) = files.glob("cache/stores/*/train-0000.npy")
    contents = bytearray(pixels.read_bytes())
    contents[HEADER:] = bytes(len(contents) - HEADER)
    pixels.write_bytes(contents)
    shutil.rmtree(files / "cache" / "means")
    for file in (*files.glob("run/means/*"), files / "run" / "weights" / "B2B.s0.safetensors"):
        file.unlink()
    outcome = train()
    assert outcome.code == 0, outcome.text
    for file in (folder / "alone" / "run" / "means").iterdir():
        assert (files / "run" / "means" / file.name).read_bytes() == file.read_bytes()
    same_study(folder / "alone" / "run", files / "run")


def test_reports_do_not_show_damaged_records(place: tuple[Path, Callable[[], Outcome]], tmp_path: Path) -> None:
    folder, _ = place
    run = tmp_path / "run"
    shutil.copytree(folder / "alone" / "run", run)
    before, contents = records.read_results(run), (run / "study.db").read_bytes()
    random = Random(0)
    found = 0
    for _ in range(200):
        (run / "study.db").write_bytes(contents)
        flip(run / "study.db", random, 1)
        try:
            after = records.read_results(run)
        except InputError as error:
            found += "same grid command makes it again" in str(error) or "not a readable" in str(error)
        else:
            assert (after.results, after.facts) == (before.results, before.facts)
    assert found > 10


def test_swapped_shards_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is whole by itself."""
    from fasttransfer.pipelines import shard_writer
    from fasttransfer.training import grid

    monkeypatch.setattr(shard_writer, "SHARD_BYTES", 32 * 32 * 3 * 4)
    monkeypatch.setenv("FASTTRANSFER_CACHE", str(tmp_path / "cache"))
    choices = tiny_choices(tmp_path, layers=(2,), targets=("B",), treatments=("transfer",))
    assert grid.run(choices, tmp_path / "undisturbed", console=quiet())
    one, other, *_ = sorted((tmp_path / "cache" / "stores").glob("*/train-0*.npy"))
    one.rename(tmp_path / "one")
    other.rename(one)
    (tmp_path / "one").rename(other)
    assert grid.run(choices, tmp_path / "run", console=quiet())
    same_study(tmp_path / "undisturbed", tmp_path / "run")
