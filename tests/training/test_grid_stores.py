"""Studies on stores: the same as on their sources, whichever feed reads them, wherever they were interrupted."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from studies import cohort, quiet, said, same_study, setting_in, store_of, tiny_choices, unit_times

from fasttransfer import cli
from fasttransfer.core import devices, tensor_files
from fasttransfer.core.errors import InputError
from fasttransfer.core.files import cache_folder
from fasttransfer.core.progress import format_bytes
from fasttransfer.pipelines import choose_feed, prepare
from fasttransfer.pipelines.dali_feed import has_dali
from fasttransfer.pipelines.store import Kind
from fasttransfer.study import images, records
from fasttransfer.study.cells import TASKS, Cell, base
from fasttransfer.study.configuration import Feeding
from fasttransfer.study.paths import weights_file
from fasttransfer.training import grid, study_plan, study_setup, time_estimate

needs_dali = pytest.mark.skipif(not has_dali(), reason="DALI is not installed")
KINDS = ["raw", pytest.param("jpeg", marks=needs_dali)]


@needs_dali
def test_a_study_on_a_store_is_the_study_on_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a study keeps the kind of store that it began with, whatever else there is room for by now."""
    monkeypatch.setattr(devices, "count_workers", lambda device, threads: 1)
    choices = tiny_choices(tmp_path, layers=(3,), treatments=("transfer",), targets=("A",), steps=4)
    store = store_of(choices, tmp_path / "store", "jpeg")
    of_source, of_store = tmp_path / "of-source", tmp_path / "of-store"
    grid.run(choices, of_source, feeding=Feeding("dali"), console=quiet())
    console = quiet()
    grid.run(replace(choices, data=str(tmp_path / "store")), of_store, console=console)
    same_study(of_source, of_store)
    ours, theirs = (tomllib.loads((out / "study.toml").read_text()) for out in (of_store, of_source))
    assert ours["pictures"] == theirs["pictures"] == store.digest  # as earlier versions named it
    assert (ours["data"], theirs["data"]) == (str(tmp_path / "store"), str(tmp_path / "images"))
    line = next(line for line in said(console).splitlines() if line.startswith("images: "))
    assert line == (
        f"images: {tmp_path}/store as a jpeg store (as it is); feed: dali, decoded on the CPU from the page cache"
    )
    assert records.read_results(of_store).facts["stores"] == {
        task: {"kind": "jpeg", "size": 32, "source": choices.data} for task in TASKS
    }

    prepare.prepare(Path(choices.data), size=32, cache=cache_folder(), kind="raw", log=lambda text: None)
    assert study_plan.make_plan(choices).sources["B"].kind == "raw"
    console = quiet()
    assert grid.run(choices, of_source, feeding=Feeding(hw_share=0.5), console=console)
    assert "nothing to do" in said(console)
    assert "share" not in (of_source / "study.toml").read_text()
    with pytest.raises(
        InputError, match="this study reads a jpeg store, --feed memory reads another kind: drop --feed"
    ):
        grid.run(choices, of_source, feeding=Feeding("memory"), console=quiet())


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_study_on_a_store_ends_with_the_same_bits(tmp_path: Path, kind: Kind) -> None:
    choices = tiny_choices(tmp_path)
    store = store_of(choices, tmp_path / "store", kind)
    whole, stopped = (setting_in(tmp_path / name, choices, store) for name in ("whole", "stopped"))
    for members in [base("A", 0)], [Cell(0, "A", "selffer+", 4), Cell(0, "A", "selffer", 2)]:
        assert cohort(whole, members).run(nobody, lambda: False)
        for after in (1, 5):
            calls = iter(range(1000))
            cohort(stopped, members).run(nobody, lambda after=after, calls=calls: next(calls) == after)  # type: ignore[misc]
        assert cohort(stopped, members).run(nobody, lambda: False)
        for cell in members:
            (ours, about), (theirs, wanted) = (
                tensor_files.load(weights_file(s.folder, cell)) for s in (stopped, whole)
            )
            assert about == wanted
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def nobody(message: object) -> None:
    pass


@needs_dali
def test_a_source_becomes_jpegs_where_the_disk_has_no_room_for_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choices = tiny_choices(tmp_path)
    count = 6 * (10 + 5)
    monkeypatch.setattr(choose_feed, "free_disk", lambda folder: count * 32 * 32 * 2)
    plan = study_plan.make_plan(choices)
    source = plan.sources["A"]
    assert source.kind == "jpeg" and "too little" in source.why
    monkeypatch.setattr(choose_feed, "free_disk", lambda folder: count * 32 * 32 * 4)
    assert study_plan.make_plan(choices).sources["B"].kind == "raw"


def test_a_store_of_another_size_is_refused_with_what_fits(tmp_path: Path) -> None:
    choices = tiny_choices(tmp_path)
    folder = str(tmp_path / "store")
    store_of(choices, tmp_path / "store", "raw", size=64)
    with pytest.raises(InputError) as refused:
        study_plan.make_plan(replace(choices, data=folder, recipe="caffe"))
    assert str(refused.value) == (
        f"{folder} holds 64 x 64 images, recipe caffe needs 256: prepare it again with --size 256 or choose "
        "--recipe mini"
    )
    with pytest.raises(InputError, match="needs 32: prepare it again with --size 32 or choose --recipe mini"):
        study_plan.make_plan(replace(choices, data=folder))
    assert study_plan.make_plan(replace(choices, data=folder, recipe=None)).recipe.name == "mini"


@pytest.mark.parametrize(("kind", "feed"), [("raw", "dali"), ("jpeg", "memory")])
def test_a_feed_that_cannot_read_the_store_is_refused_before_anything_is_written(
    tmp_path: Path, kind: Kind, feed: choose_feed.Name
) -> None:
    choices = tiny_choices(tmp_path)
    store_of(choices, tmp_path / "store", kind)
    with pytest.raises(InputError, match=f"--feed {feed} reads .* drop --feed"):
        grid.run(replace(choices, data=str(tmp_path / "store")), tmp_path / "runs" / "run", feeding=Feeding(feed))
    assert not (tmp_path / "runs").exists()


def test_images_that_were_drawn_stay_synthetic_in_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "BUILTIN_TRAIN", 3)
    monkeypatch.setattr(images, "BUILTIN_VAL", 2)
    drawn = images.builtin_store(32, lambda text: None)
    choices = tiny_choices(tmp_path, split="random:0")
    for store, synthetic in (drawn, True), (store_of(choices, tmp_path / "store", "raw"), False):
        of_store = replace(choices, data=str(store.folder))
        plan = study_plan.make_plan(of_store)
        with records.Records(tmp_path / f"{synthetic}.db") as book:
            setting = study_setup.open_study(plan, dict.fromkeys(TASKS, store), tmp_path / f"{synthetic}")
            study_setup.prepare_records(book, plan, dict.fromkeys(TASKS, store), setting)
            facts = dict(book._db.execute("SELECT key, json FROM facts"))
        assert facts["synthetic"] == str(synthetic).lower()


def test_a_dry_run_says_which_feed_reads_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time_estimate, "time_jobs", unit_times)
    console = quiet()
    time_estimate.dry_run(tiny_choices(tmp_path), tmp_path / "run", console=console)
    text = " ".join(said(console).split())
    assert f"images: {tmp_path}/images as a raw store (" in text
    assert "feed: memory, mapped, from the page cache" in text


def test_a_dry_run_counts_all_that_is_prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    choices = tiny_choices(tmp_path)
    every = sum(map(sum, study_plan.make_plan(choices).sources["A"].images.per_class.values()))
    monkeypatch.setattr(time_estimate, "time_jobs", unit_times)
    monkeypatch.setattr(time_estimate, "expected_bytes", lambda kind, images, side: images * 10**9)
    monkeypatch.setattr(choose_feed, "free_disk", lambda folder: 10**12)
    console = quiet()
    time_estimate.dry_run(replace(choices, classes=2), tmp_path / "run", console=console)
    assert f"{format_bytes(every * 10**9)} of prepared images" in " ".join(said(console).split())


def test_splits_are_shown_of_a_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store_of(tiny_choices(tmp_path), tmp_path / "store", "raw")
    for command in ("show", "export"):
        shown = []
        for data in ("store", "images"):
            assert cli.run(["splits", command, "natural-manmade", "--data", str(tmp_path / data)]) == 0
            shown.append(capsys.readouterr().out)
        assert shown[0] == shown[1] and "n01440764" in shown[0]


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_share_is_a_share(share: float) -> None:
    with pytest.raises(InputError, match=f"--hw-share {share}: a share from 0 to 1 is needed"):
        Feeding(hw_share=share)
