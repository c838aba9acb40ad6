"""Features for notebooks are those that a study's cells are trained on, whether they are read or computed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from studies import MANMADE, NATURAL, draw_images, trained_study
from torch import Tensor

from fasttransfer import features
from fasttransfer.core import machine, tensor_files
from fasttransfer.core.errors import InputError
from fasttransfer.features import cache, feature_source, network_features
from fasttransfer.study.cells import TASKS, Cell, base
from fasttransfer.study.configuration import Study
from fasttransfer.study.paths import weights_file
from fasttransfer.study.records import read_results
from fasttransfer.training.cohort import Cohort
from fasttransfer.training.cohort_builder import StudyContext, build_cohort

CELLS = (base("A", 0), base("B", 0), Cell(0, "B", "transfer", 3))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Both bases and a transfer network of a study with ten views."""
    folder = tmp_path_factory.mktemp("extract")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTTRANSFER_CACHE", str(folder / "stores"))
        yield trained_study(folder, CELLS, views=10)


@pytest.fixture(autouse=True)
def _cache(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prepare images once, but keep features for one test alone."""
    monkeypatch.setenv("FASTTRANSFER_CACHE", str(study.parent / "stores"))
    monkeypatch.setattr(cache, "cache_root", lambda: tmp_path / "features")


def cohort_of(study: Path, cell: Cell) -> Cohort:
    """Return the cohort of `cell`, with features computed live."""
    store = next((study.parent / "stores" / "stores").glob("*/manifest.json")).parent
    classes = {task: tuple(names) for task, names in read_results(study).facts["classes"].items()}
    setting = StudyContext(
        Study.read(study / "study.toml"), study, dict.fromkeys(TASKS, store), classes, features="live"
    )
    return build_cohort(setting, [cell], torch.device("cpu"))


def validate(study: Path, cell: Cell) -> tuple[Tensor, Tensor, Tensor]:
    """Return (ids, labels, cut) of the validation images as a frozen cell is validated on them."""
    cohort = cohort_of(study, cell)
    batches = list(cohort._target.feed.val())
    with torch.no_grad():
        cuts = [cohort._cuts(batch.images, cohort._members, None)[str(cell.source), cell.n] for batch in batches]
    return torch.cat([b.ids for b in batches]), torch.cat([b.labels for b in batches]), torch.cat(cuts)


@pytest.mark.parametrize("cut", [1, 3, 5, 6])
@pytest.mark.parametrize(("network", "treatment"), [("baseA", "transfer"), ("baseB", "selffer")])
def test_features_are_those_that_cells_are_validated_on(study: Path, cut: int, network: str, treatment: str) -> None:
    cut_features = features.of(study, network, cut, task="B")
    ids, labels, cuts = validate(study, Cell(0, "B", treatment, cut))
    assert torch.equal(cut_features.values[:, 0].float(), cuts)
    assert cut_features.values.dtype == torch.bfloat16
    assert torch.equal(cut_features.ids, ids)
    assert torch.equal(cut_features.labels, labels)
    assert (cut_features.network, cut_features.cut, len(cut_features.views)) == (f"{network}.s0", cut, 1)
    assert cut_features.classes == tuple(read_results(study).facts["classes"]["B"])


def test_a_copy_has_its_sources_features_and_mean(study: Path) -> None:
    copy, source = (features.of(study, name, 3, task="B") for name in ("A3B", "baseA"))
    assert torch.equal(copy.values, source.values)
    own = features.of(study, "A3B")
    assert own.classes == copy.classes, "its own task is B"


def test_cut_7_is_stage_7_of_cut_6_without_dropout(study: Path) -> None:
    cut_features, below = (features.of(study, "baseB", cut, part="train", views=2) for cut in (7, 6))
    stored = tensor_files.load(weights_file(study, base("B", 0)))[0]
    wanted = torch.relu(below.values.float() @ stored["fc7.weight"].t() + stored["fc7.bias"])
    assert cut_features.values.shape == (30, 2, 16)
    torch.testing.assert_close(cut_features.values.float(), wanted, rtol=2**-8, atol=1e-6)


def test_views_rows_and_batches_are_parts_of_one_list(study: Path) -> None:
    ten = features.of(study, "baseA", 3, part="train", views=10)
    assert ten.values.shape == (30, 10, 8, 3, 3)
    assert ten.flat().shape == (300, 72)
    assert not torch.equal(ten.values[:, 0], ten.values[:, 1]), "the mirror"
    one = features.of(study, "baseA", 3, part="train")
    assert torch.equal(one.values, ten.values[:, :1])
    assert one.views == ten.views[:1]
    rows = [29, 3, 3, 17]
    few = features.of(study, "baseA", 3, part="train", views=10, rows=rows)
    assert torch.equal(few.values, ten.values[rows])
    assert few.ids.tolist() == rows
    assert torch.equal(few.labels, ten.labels[rows])
    parts = list(features.batches(study, "baseA", 3, part="train", views=10, size=7))
    assert [len(part.ids) for part in parts] == [7, 7, 7, 7, 2]
    assert torch.equal(torch.cat([part.values for part in parts]), ten.values)


@pytest.mark.parametrize("cut", [2, 6, 7])
def test_kept_features_are_those_that_were_computed(study: Path, cut: int, monkeypatch: pytest.MonkeyPatch) -> None:
    computed = features.of(study, "baseA", cut, task="B", views=10)
    assert cache.list_entries(cache.cache_root()) == []
    stored = features.of(study, "baseA", cut, task="B", views=10, keep=True, rows=[2, 9])
    (entry,) = cache.list_entries(cache.cache_root())
    assert (entry.key.cut, entry.images, entry.views) == (min(cut, 6), 15, 10)
    assert (entry.info.network, entry.info.part, entry.info.task) == ("baseA.s0", "val", "B")
    assert torch.equal(stored.values, computed.values[[2, 9]])

    def refuse(*_: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(feature_source, "study_feed", refuse)
    assert torch.equal(features.of(study, "baseA", cut, task="B", views=10).values, computed.values)
    assert torch.equal(features.of(study, "baseA", cut, task="B", views=2).values, computed.values[:, :2])


def test_a_notebook_finds_the_entries_of_a_studys_cell(study: Path) -> None:
    classes = {task: tuple(names) for task, names in read_results(study).facts["classes"].items()}
    store = next((study.parent / "stores" / "stores").glob("*/manifest.json")).parent
    setting = StudyContext(
        Study.read(study / "study.toml"), study, dict.fromkeys(TASKS, store), classes, features="cache"
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(setting.study.threads)  # as in a worker
    try:
        build_cohort(setting, [Cell(0, "B", "transfer", 4)], torch.device("cpu"))._target.feed.close()
    finally:
        torch.set_num_threads(threads)
    entries = {(entry.info.part, entry.views) for entry in cache.list_entries(cache.cache_root())}
    assert entries == {("train", 10), ("val", 1)}
    for part, views in entries:
        request = network_features.open_network(study, "baseA", task="B", views=views)
        with feature_source.training_conditions(request.study.threads):
            assert request.find(part, [4], log=pytest.fail).keys() == {4}  # type: ignore[arg-type]


def test_a_damaged_entry_is_computed_again(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = features.of(study, "baseA", 5, keep=True)
    (entry,) = cache.list_entries(cache.cache_root())
    shard = entry.folder / "00000.shard"
    content = bytearray(shard.read_bytes())
    content[200] ^= 4
    shard.write_bytes(content)
    assert torch.equal(features.of(study, "baseA", 5).values, good.values)
    assert cache.list_entries(cache.cache_root()) == []
    warnings = capsys.readouterr().err
    assert f"{shard}: damaged: record " in warnings
    assert f"quarantined as {entry.folder.name}.damaged and not read" in warnings


def test_a_cache_that_cannot_be_written_costs_a_warning(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = features.of(study, "baseA", 5)
    (tmp_path / "features").write_text("a file where the folder should be")
    assert torch.equal(features.of(study, "baseA", 5, keep=True).values, good.values)
    assert "features of baseA.s0 are not kept" in capsys.readouterr().err


def test_features_of_images_that_are_not_the_studys(study: Path, tmp_path: Path) -> None:
    own = features.of(study, "baseA", 3, task="A", part="train")
    other = draw_images(tmp_path / "others", (*NATURAL, *MANMADE), train=4, val=2)
    cut_features = features.of(study, "baseA", 3, data=other, part="train")
    assert cut_features.classes == tuple(sorted((*NATURAL, *MANMADE)))
    assert cut_features.labels.bincount().tolist() == [4] * 6
    assert cut_features.values.shape == (24, 1, *own.values.shape[2:])
    small = features.of(study, "baseA", 3, data=draw_images(tmp_path / "larger", NATURAL, side=80))
    assert small.values.shape[2:] == own.values.shape[2:]  # prepared at the network's size


@pytest.mark.parametrize("cut", [0, 7, 8])
def test_there_are_no_keys_of_cuts_that_are_not_kept(study: Path, cut: int) -> None:
    request = network_features.open_network(study, "baseA")
    assert request.key("val", 6).cut == 6
    with pytest.raises(ValueError, match=f"features of cut {cut} of tiny are not kept"):
        request.key("val", cut)


def test_errors_name_what_is_wrong(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(match: str, *args: object, **options: object) -> None:
        with pytest.raises(InputError, match=match):
            features.of(study, *args, **options)  # type: ignore[arg-type]

    refuses("has no network baseC: choose among baseA, baseB, A1A", "baseC")
    refuses("has no network baseA.s3", "baseA.s3")
    refuses("A5B.s0 is planned, not done", "A5B")
    refuses("cut 0: choose among 1 to 7", cut=0)
    refuses("cut 8: choose among 1 to 7", cut=8)
    refuses("task C: choose A or B", task="C")
    refuses("views 3: choose 1", views=3)
    refuses("part 'test': choose train or val", part="test")
    refuses("rows 3 to 15: the val list of A has 15 images, 0 to 14", rows=[3, 15])
    refuses("name at least one image", rows=[])
    refuses("task A is one of the study's", task="A", data="builtin")
    refuses("does not exist", data=tmp_path / "nowhere")
    with pytest.raises(InputError, match="no study here"):
        features.of(tmp_path)
    monkeypatch.setattr(machine, "free_memory", lambda: 10_000)
    refuses("at cut 1 take .* of memory are free: ask for some rows, or take them batch by batch", cut=1, views=10)


def test_changed_images_are_not_taken_for_the_studys(study: Path, tmp_path: Path) -> None:
    other = trained_study(tmp_path, [base("A", 0)])
    draw_images(tmp_path / "new", (*NATURAL, *MANMADE), train=3, val=2)
    (tmp_path / "images").rename(tmp_path / "old")
    (tmp_path / "new").rename(tmp_path / "images")
    with pytest.raises(InputError, match="does not hold the images that the study was trained on any more"):
        features.of(other)


def test_missing_weights_are_an_error(study: Path, tmp_path: Path) -> None:
    other = trained_study(tmp_path, [base("A", 0)])
    weights_file(other, base("A", 0)).unlink()
    with pytest.raises(InputError, match=r"the weights of baseA.s0 are missing or damaged .*the same grid command"):
        features.of(other)
