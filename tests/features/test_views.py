"""A study with views: cached features have the bits of computed ones, and so have the trained networks."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from studies import tiny_choices, with_bases
from torch import Tensor

from fasttransfer.cli.grid import outcome_printer
from fasttransfer.core import tensor_files
from fasttransfer.core.errors import InputError
from fasttransfer.features import cache, cut_timing, feature_source
from fasttransfer.features.cut_timing import CutTiming
from fasttransfer.networks.architecture import StepDraws, cut_name, rounded_cuts
from fasttransfer.networks.caffenet import CAFFENET, CAFFENET_MINI, CaffeNetArchitecture
from fasttransfer.networks.precision import dtype_of
from fasttransfer.pipelines.streams import Stream, Sweep
from fasttransfer.pipelines.views import list_views
from fasttransfer.study import records
from fasttransfer.study.cells import TASKS, Cell, base
from fasttransfer.study.configuration import Choices, Feeding, Study
from fasttransfer.study.paths import weights_file
from fasttransfer.training import cohort_builder, grid, study_plan
from fasttransfer.training.cohort_builder import StudyContext, build_cohort
from fasttransfer.training.messages import Checked, Ended, Noted

CPU = torch.device("cpu")
FROZEN = ("selffer", "transfer", "random")

Trained = tuple[dict[str, dict[str, Tensor]], dict[Cell, tuple[object, ...]]]


@pytest.fixture(autouse=True)
def _a_cache_and_a_thread_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("FASTTRANSFER_CACHE", str(tmp_path / "cache"))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_setting(tmp_path: Path, views: int = 2, init: str = "he", **changes: object) -> StudyContext:
    """Make a study's folder with both bases trained."""
    choices = tiny_choices(tmp_path, views=views, **changes)
    recipe = Path(str(choices.recipe))
    recipe.write_text(recipe.read_text().replace('init = "he"', f'init = "{init}"'))
    return with_bases(choices, tmp_path / "run")


def train(
    setting: StudyContext, cells: Sequence[Cell], features: str, stop: Callable[[], bool] = lambda: False
) -> tuple[Trained, list[str]]:
    """Train cells; return their weights, which are removed again, with their checks and ends, and the log."""
    messages: list[object] = []
    context = replace(setting, features=features)  # type: ignore[arg-type]
    done = build_cohort(context, cells, CPU, messages.append).run(messages.append, stop, 1e9)
    weights = {}
    for cell in cells if done else ():
        path = weights_file(setting.folder, cell)
        weights[cell.label] = tensor_files.load(path)[0]
        path.unlink()
    checks = {m.cell: m.evaluations for m in messages if isinstance(m, Checked)}
    ends = {m.cell: (m.state, m.reason) for m in messages if isinstance(m, Ended)}
    return (weights, checks | {}) if not ends else (weights, {c: (*checks[c], *ends[c]) for c in ends}), [
        m.text for m in messages if isinstance(m, Noted) and m.stays
    ]


def is_same(one: Trained, other: Trained) -> bool:
    (nets, checks), (others, other_checks) = one, other
    return checks == other_checks and all(
        torch.equal(nets[label][name], others[label][name]) for label in others for name in others[label]
    )


def some_cells() -> list[Cell]:
    return [Cell(0, "B", t, n) for t, n in (("transfer", 3), ("selffer", 7), ("random", 5), ("transfer", 6))]


def test_each_list_of_views_begins_with_the_shorter_ones() -> None:
    assert list_views(1, 29) == ((14, 14, False),)
    assert list_views(2, 29) == ((14, 14, False), (14, 14, True))
    ten = list_views(10, 29)
    assert ten[:2] == list_views(2, 29)
    assert {(top, left) for top, left, _ in ten} == {(14, 14), (0, 0), (0, 29), (29, 0), (29, 29)}
    assert len(set(ten)) == 10


def test_a_stream_draws_all_its_views_evenly_and_reproducibly() -> None:
    choices = list_views(10, 6)
    stream, any_crop = Stream(1, 2, 4000, 4000, 6, choices), Stream(1, 2, 4000, 4000, 6)
    views = stream.views(0)
    assert torch.equal(views.ids, any_crop.views(0).ids)
    counts = torch.bincount(views.number, minlength=10)
    assert int(counts.min()) > 330 and int(counts.max()) < 470
    views_drawn = zip(views.top.tolist(), views.left.tolist(), views.mirror.tolist(), strict=True)
    assert [choices[n] for n in views.number.tolist()] == list(views_drawn)
    assert not torch.equal(stream.views(1).number[views.ids.argsort()], views.number)
    assert torch.equal(stream.views(0).number, views.number)


def test_a_sweep_has_every_record_once_in_order_and_fills_its_last_batch() -> None:
    choices = list_views(2, 6)
    sweep = Sweep(0, 0, 5, 4, 6, choices)
    batches = [sweep.views(step) for step in range(sweep.steps)]
    records = torch.cat([views.ids * 2 + views.number for views in batches])
    assert records.tolist() == [*range(10), 9, 9]
    assert torch.cat([views.mirror for views in batches]).tolist() == [bool(r % 2) for r in records.tolist()]


def test_views_are_part_of_the_study_and_unlimited_ones_are_not_written(tmp_path: Path) -> None:
    choices = tiny_choices(tmp_path)
    plan = study_plan.make_plan(choices)
    unlimited = study_plan.make_study(plan, dict.fromkeys(TASKS, "digest"))
    assert "views" not in unlimited.to_dict()
    ten = study_plan.make_study(study_plan.make_plan(replace(choices, views=10)), dict.fromkeys(TASKS, "digest"))
    assert unlimited.differences(ten) == ["views: not set in the study, 10 in the command"]
    ten.write(tmp_path / "study.toml")
    assert Study.read(tmp_path / "study.toml") == ten
    with pytest.raises(InputError, match="--views 3: choose 1"):
        Choices(views=3)
    with pytest.raises(InputError, match=r"--features cache: .*give --views"):
        study_plan.make_plan(choices, Feeding(features="cache"))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("network", "batch"), [(CAFFENET_MINI, 20), (CAFFENET, 6)])
def test_features_do_not_depend_on_the_rest_of_the_batch(
    network: CaffeNetArchitecture, batch: int, precision: str, threads: int
) -> None:
    """They do not depend on how full the batch is either: a prefix always runs on whole batches."""
    net = network.build(2, precision, CPU)
    random = torch.Generator().manual_seed(0)
    for weight in net.requires_grad_(False).parameters():
        weight.copy_(torch.empty_like(weight).normal_(0, (2 / weight[0].numel()) ** 0.5, generator=random))
    x = torch.randn(batch, *network.cut_shape(0), generator=random).to(dtype_of(precision))
    x = x.contiguous(memory_format=torch.channels_last)
    torch.set_num_threads(threads)
    expected = rounded_cuts(net, x, range(1, 7), batch)
    order = torch.randperm(batch, generator=random)
    moved = rounded_cuts(net, x[order].contiguous(memory_format=torch.channels_last), range(1, 7), batch)
    few = rounded_cuts(net, x[:3], range(1, 7), batch)
    deep = rounded_cuts(net, x, [6], batch)
    for cut, features in expected.items():
        assert torch.equal(moved[cut], features[order]), cut
        assert torch.equal(few[cut], features[:3]), cut
    assert torch.equal(deep[6], expected[6])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_batch_from_the_cache_is_what_a_live_run_computes(tmp_path: Path, precision: str) -> None:
    setting = make_setting(tmp_path, precision=precision)
    cells = [Cell(0, "B", treatment, n) for treatment in ("selffer", "transfer") for n in CAFFENET.cuts]
    cached = build_cohort(replace(setting, features="cache"), cells, CPU)
    live = build_cohort(replace(setting, features="live"), cells, CPU)
    pairs = [(cached._target.feed.train(step), live._target.feed.train(step)) for step in (0, 1, 7, 3)]
    pairs += zip(cached._target.feed.val(), live._target.feed.val(), strict=True)
    assert len(pairs[-1][0].labels) == 7  # a batch that is not full
    for cached_batch, live_batch in pairs:
        assert not cached_batch.images and not live_batch.cuts
        assert torch.equal(cached_batch.labels, live_batch.labels) and torch.equal(cached_batch.views, live_batch.views)
        for source in ("A", "B"):
            expected = rounded_cuts(live._sources[source].net, live_batch.images[source], range(1, 7), 8)
            for cut, features in expected.items():
                assert torch.equal(cached_batch.cuts[cut_name(source, cut)], features), (source, cut)
                assert not torch.equal(features[0], features[1]), "features that all images share show nothing"


@pytest.mark.parametrize(
    ("precision", "init", "treatments"),
    [("fp32", "he", FROZEN), ("bf16", "he", FROZEN), ("fp32", "caffe", ("random", "random-he"))],
)
def test_every_frozen_cell_is_the_same_from_the_cache_as_live(
    tmp_path: Path, precision: str, init: str, treatments: tuple[str, ...]
) -> None:
    setting = make_setting(tmp_path, precision=precision, init=init)
    frozen = [Cell(0, "B", treatment, n) for treatment in treatments for n in CAFFENET.cuts]
    cells = [*frozen, Cell(0, "B", "transfer+", 3)]
    live, lines = train(setting, cells, "live")
    assert not lines and not cache.list_entries(cache.cache_root())
    filled, lines = train(setting, cells, "cache")
    assert is_same(filled, live)
    assert len(cache.list_entries(cache.cache_root())) == 2 * len(treatments) * 6  # parts, sources, cuts
    assert "live" not in lines[-1]
    read, _ = train(setting, cells, "cache")
    assert is_same(read, live)


def test_a_mix_of_cached_and_live_cuts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = make_setting(tmp_path)
    cells = [Cell(0, "B", treatment, n) for treatment in ("random", "transfer") for n in CAFFENET.cuts]
    live, _ = train(setting, cells, "live")
    monkeypatch.setattr(
        cut_timing, "choose_cuts", lambda timings, *_: frozenset(m.cut for m in timings if m.cut in (2, 5, 6))
    )
    mixed, lines = train(setting, cells, "auto")
    assert is_same(mixed, live)
    assert {entry.key.cut for entry in cache.list_entries(cache.cache_root())} == {2, 5, 6}
    assert "A2" in lines[-1].split(";")[0] and "A3" in lines[-1].split(";")[1]


@pytest.mark.parametrize(("before", "after"), [("live", "cache"), ("cache", "live"), ("cache", "cache")])
def test_a_stopped_cohort_goes_on_to_the_same_bits_wherever_its_features_come_from(
    tmp_path: Path, before: str, after: str
) -> None:
    setting, cells = make_setting(tmp_path, precision="bf16"), some_cells()
    undisturbed, _ = train(setting, cells, "live")
    calls = iter(range(1000))
    interrupted, _ = train(setting, cells, before, stop=lambda: next(calls) == 5)
    assert not interrupted[0]
    resumed, _ = train(setting, cells, after)
    assert is_same(resumed, undisturbed)


def test_bases_and_fine_tuned_cells_are_trained_on_the_views_too(tmp_path: Path) -> None:
    """A study of one view trains on centre crops alone, one of two views on their mirrors too."""
    one, two = (make_setting(tmp_path / str(views), views=views) for views in (1, 2))
    feed = build_cohort(one, [Cell(0, "A", "transfer+", 2)], CPU)._target.feed
    (shape,) = {batch.images["B"].shape for batch in (feed.train(0), feed.train(1))}
    assert shape == (8, 3, 29, 29) and not feed.train(3).views.any()
    stored = [tensor_files.load(weights_file(setting.folder, base("A", 0)))[0] for setting in (one, two)]
    assert not torch.equal(stored[0]["fc8.weight"], stored[1]["fc8.weight"])


def test_cells_frozen_to_layer_7_read_cut_6_and_their_dropout_runs_live(tmp_path: Path) -> None:
    assert [CAFFENET.kept_cut(n) for n in CAFFENET.cuts] == [1, 2, 3, 4, 5, 6, 6]
    setting, cell = make_setting(tmp_path), Cell(0, "B", "transfer", 7)
    cohort = build_cohort(replace(setting, features="cache"), [cell], CPU)
    batch = cohort._target.feed.train(0)
    assert batch.cuts.keys() == {"A6"}
    draws = StepDraws(cohort._draw_keys, torch.tensor(0), 0.5)
    dropped = cohort._cuts(batch.cuts, cohort._members, draws)["A", 7]
    whole = cohort._cuts(batch.cuts, cohort._members, None)["A", 7]
    assert dropped.shape == whole.shape == (8, 16) and not torch.equal(dropped, whole)


def test_a_cohort_of_cached_cuts_reads_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setting, cells = make_setting(tmp_path), some_cells()
    expected, _ = train(setting, cells, "cache")

    def refuse(*args: object, **more: object) -> None:
        raise AssertionError("images were read")

    for module in (cohort_builder, feature_source):
        monkeypatch.setattr(module, "study_feed", refuse)
    read, _ = train(setting, cells, "cache")
    assert is_same(read, expected)


def shards(part: str, cut: int) -> list[Path]:
    entries = [e for e in cache.list_entries(cache.cache_root()) if e.info.part == part and e.key.cut == cut]
    return [path for entry in entries for path in sorted(entry.folder.glob("*.shard"))]


@pytest.mark.parametrize("part", ["train", "val"])
def test_damage_during_training_costs_the_entry_and_changes_no_bit(tmp_path: Path, part: str) -> None:
    setting = make_setting(tmp_path)
    cells = [*some_cells(), Cell(0, "B", "transfer+", 1)]
    live, _ = train(setting, cells, "live")
    train(setting, cells, "cache")
    (path, *_) = shards(part, 3)
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0x40  # in one of the records, which is met when its turn comes
    path.write_bytes(content)
    weights, lines = train(setting, cells, "cache")
    assert is_same(weights, live)
    assert cache.list_damaged(cache.cache_root()) == [path.parent.with_name(f"{path.parent.name}.damaged")]
    assert sum("runs live" in line for line in lines) == 1
    again, _ = train(setting, cells, "cache")  # made again
    assert is_same(again, live)
    assert shards(part, 3)


def test_cells_run_live_where_the_cache_cannot_be_written(tmp_path: Path) -> None:
    setting, cells = make_setting(tmp_path), some_cells()
    live, _ = train(setting, cells, "live")
    cache.cache_root().parent.mkdir(exist_ok=True)
    cache.cache_root().write_text("in the way")
    for mode in ("cache", "auto"):
        weights, lines = train(setting, cells, mode)
        assert is_same(weights, live)
        assert any("a file has this name" in line and "live" in line for line in lines)


def test_stopped_filling_leaves_nothing(tmp_path: Path) -> None:
    setting, cells = make_setting(tmp_path), some_cells()
    calls = iter(range(1000))
    cohort = build_cohort(replace(setting, features="cache"), cells, CPU, stop=lambda: next(calls) >= 1)
    assert not cohort.run(lambda m: None, lambda: True, 1e9)
    assert not cache.list_entries(cache.cache_root())
    assert not [p for p in cache.cache_root().iterdir() if p.is_dir()]
    shutil.rmtree(cache.cache_root())


def test_a_study_of_two_views_reads_the_entries_of_ten(tmp_path: Path) -> None:
    cells = [Cell(0, "B", "random", n) for n in (2, 6)]
    two, ten = (make_setting(tmp_path / str(views), views=views) for views in (2, 10))
    live, _ = train(two, cells, "live")
    train(ten, cells, "cache")
    entries = {entry.folder: entry.use.hits for entry in cache.list_entries(cache.cache_root())}
    read, _ = train(two, cells, "cache")
    assert is_same(read, live)
    now = {entry.folder: entry.use.hits for entry in cache.list_entries(cache.cache_root())}
    assert now == {folder: hits + 1 for folder, hits in entries.items()} and len(now) == 4


def test_a_second_study_reads_what_the_first_computed(tmp_path: Path) -> None:
    """Train both in worker processes, as a user does."""
    choices = tiny_choices(tmp_path, views=10, layers=(5, 7), treatments=("transfer",), targets=("B",))
    texts, results = [], []
    for out in (tmp_path / "first", tmp_path / "second"):
        console = Console(file=(text := io.StringIO()), width=200)
        assert grid.run(choices, out, feeding=Feeding(features="cache"), console=console, show=outcome_printer(console))
        texts.append(text.getvalue())
        results.append(records.read_results(out))
    assert results[0].results == results[1].results
    for network in ("A5B", "A7B"):
        one, other = (tensor_files.load(study.folder / "weights" / f"{network}.s0.safetensors")[0] for study in results)
        assert all(torch.equal(one[name], other[name]) for name in one)
    entries = cache.list_entries(cache.cache_root())
    assert len(entries) == 4 and min(entry.use.hits for entry in entries) >= 2
    assert results[0].study["views"] == results[0].facts["views"] == 10
    assert all("views: 10, in" in text and "views: 10." in text for text in texts)


def test_cuts_are_kept_by_total_time_and_room_on_the_disk() -> None:
    timings = [
        CutTiming(1, compute=1.0, read=2.0, bytes=1000, dense=1000),
        CutTiming(3, compute=3.0, read=0.5, bytes=100, dense=200),
        CutTiming(6, compute=9.0, read=0.1, bytes=10, dense=20),
    ]
    # 1.0 + 0.5 + 0.1, and not 2.0 + 0.5 + 0.1
    assert cut_timing.choose_cuts(timings, records=1, room=1e9) == {3, 6}
    assert cut_timing.choose_cuts(timings, records=1, room=109) == {6}
    assert cut_timing.choose_cuts(timings, records=1, room=0) == frozenset()
    assert cut_timing.choose_cuts(timings[1:], records=1, room=1e9) == {3, 6}  # 0.6 rather than 3.1


def test_auto_keeps_the_cuts_that_are_read_faster(tmp_path: Path) -> None:
    setting, cells = make_setting(tmp_path), some_cells()
    live, _ = train(setting, cells, "live")
    trained, _ = train(setting, cells, "auto")
    assert is_same(trained, live)
    assert any(entry.key.cut == 6 for entry in cache.list_entries(cache.cache_root()))
    assert not [p for p in cache.cache_root().iterdir() if p.name.startswith("tmp")]
