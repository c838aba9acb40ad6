"""A cell's weights depend on nothing but the study: not on company, cuts of the grid, stops or restarts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from studies import RECIPE, tiny_choices
from torch import Tensor

from fasttransfer import grid, weights
from fasttransfer.assembly import Setting, build_cohort
from fasttransfer.cells import LAYERS, TREATMENTS, Cell, base
from fasttransfer.cohort import Checked, Cohort, Ended, Message, start_weights, weights_path
from fasttransfer.files import cache_folder
from fasttransfer.pipelines.prepare import prepare

CPU = torch.device("cpu")


def never() -> bool:
    return False


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    """A study's folder with both bases trained."""
    return make_setting(tmp_path)


def make_setting(tmp_path: Path, **changes: object) -> Setting:
    choices = tiny_choices(tmp_path, **changes)
    plan = grid.settle(choices)
    store = prepare(Path(choices.data), size=plan.recipe.geometry.store, cache=cache_folder(), say=lambda _: None)
    folder = tmp_path / "run"
    for name in ("weights", "checkpoints", "means"):
        (folder / name).mkdir(parents=True)
    setting = Setting(grid._study(plan, store.digest, None), folder, store.folder, plan.classes)
    grid._means(setting, store)
    for task in ("A", "B"):
        train(setting, [base(task, 0)])
    return setting


def train(
    setting: Setting, cells: Sequence[Cell], stop: Callable[[], bool] = never, seconds: float = 1e9
) -> list[Message]:
    heard: list[Message] = []
    build_cohort(setting, cells, CPU).run(heard.append, stop, seconds)
    return heard


def trained(setting: Setting, cells: Sequence[Cell]) -> dict[str, dict[str, Tensor]]:
    found = {c.label: weights.load(weights_path(setting.folder, c))[0] for c in cells}
    for cell in cells:
        weights_path(setting.folder, cell).unlink()
    return found


def same(one: dict[str, dict[str, Tensor]], other: dict[str, dict[str, Tensor]]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[c][name], other[c][name]) for c in one for name in one[c])


def all_cells(target: str = "B") -> list[Cell]:
    return [Cell(0, target, treatment, n) for treatment in TREATMENTS for n in LAYERS]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_cell_trained_in_company_is_the_cell_trained_alone(tmp_path: Path, precision: str) -> None:
    setting, cells = make_setting(tmp_path, precision=precision), all_cells()
    heard = train(setting, cells)
    checks = {m.cell: m.evaluations for m in heard if isinstance(m, Checked)}
    together = trained(setting, cells)
    for cell in cells:
        alone = train(setting, [cell])
        assert same(trained(setting, [cell]), {cell.label: together[cell.label]}), cell.name
        assert {m.cell: m.evaluations for m in alone if isinstance(m, Checked)}[cell] == checks[cell]


@pytest.mark.parametrize(
    ("stop_after", "precision"), [(1, "fp32"), (4, "fp32"), (5, "bf16"), (11, "fp32"), (11, "bf16")]
)
def test_a_stopped_cohort_goes_on_as_if_it_had_not(tmp_path: Path, stop_after: int, precision: str) -> None:
    setting = make_setting(tmp_path, precision=precision)
    cells = [Cell(0, "B", t, n) for t, n in (("transfer", 3), ("selffer+", 7), ("random", 6), ("transfer", 7))]
    undisturbed = [m for m in train(setting, cells) if isinstance(m, Ended | Checked)]
    expected = trained(setting, cells)
    calls = iter(range(1000))
    train(setting, cells, stop=lambda: next(calls) == stop_after)
    assert {p.stem for p in (setting.folder / "checkpoints").iterdir()} == {c.label for c in cells}
    resumed = [m for m in train(setting, cells) if isinstance(m, Ended | Checked)]
    assert same(trained(setting, cells), expected)
    assert not list((setting.folder / "checkpoints").iterdir())
    last = {m.cell: m for m in resumed if isinstance(m, Checked)}
    assert last == {m.cell: m for m in undisturbed if isinstance(m, Checked)}


def test_cells_at_different_steps_catch_up(setting: Setting) -> None:
    """After a kill between two checkpoint files, the cells of a cohort stand at different steps."""
    ahead, behind = Cell(0, "B", "transfer+", 2), Cell(0, "B", "transfer", 5)
    train(setting, [ahead, behind])
    expected = trained(setting, [ahead, behind])
    calls = iter(range(1000))
    train(setting, [ahead], stop=lambda: next(calls) == 7)
    train(setting, [ahead, behind])
    assert same(trained(setting, [ahead, behind]), expected)


def test_a_damaged_checkpoint_is_put_aside_and_never_trained_on(setting: Setting) -> None:
    cell = Cell(0, "B", "transfer", 2)
    train(setting, [cell])
    expected = trained(setting, [cell])
    calls = iter(range(1000))
    train(setting, [cell], stop=lambda: next(calls) == 6)
    path = setting.folder / "checkpoints" / f"{cell.label}.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1  # one bit of one weight
    path.write_bytes(content)
    train(setting, [cell])
    assert same(trained(setting, [cell]), expected)
    assert path.with_name(path.name + ".damaged").exists()


def test_frozen_layers_are_the_sources_to_the_bit(setting: Setting) -> None:
    sources = {t: weights.load(weights_path(setting.folder, base(t, 0)))[0] for t in ("A", "B")}
    cells = [Cell(0, "B", t, 4) for t in ("transfer", "transfer+", "selffer", "random")]
    train(setting, cells)
    found = trained(setting, cells)
    frozen = [f"{name}.{kind}" for name in ("conv1", "conv2", "conv3", "conv4") for kind in ("weight", "bias")]
    for name in frozen:
        assert torch.equal(found["A4B.s0"][name], sources["A"][name])
        assert torch.equal(found["B4B.s0"][name], sources["B"][name])
        assert not torch.equal(found["A4B+.s0"][name], sources["A"][name])
    assert not torch.equal(found["R4B.s0"]["conv1.weight"], sources["B"]["conv1.weight"])
    for label in found:
        assert not torch.equal(found[label]["conv5.weight"], sources["B"]["conv5.weight"])


def test_new_layers_start_alike_in_all_cells_and_not_as_the_base_did(setting: Setting) -> None:
    cells = [Cell(0, "B", t, n) for t, n in (("transfer", 3), ("selffer", 3), ("transfer+", 2), ("random", 1))]
    members = build_cohort(setting, cells, CPU)._members
    firsts = [m.trainee.weights["conv4.weight"] for m in members]
    assert all(torch.equal(firsts[0], w) for w in firsts[1:])
    (of_base,) = build_cohort(setting, [base("B", 0)], CPU)._members
    assert not torch.equal(firsts[0], of_base.trainee.weights["conv4.weight"])


def test_the_random_control_from_hes_values(tmp_path: Path) -> None:
    """All its layers start from He's values under a recipe of small ones; what is trained beside it stays as it is."""
    recipe = tmp_path / "small.toml"
    recipe.write_text(RECIPE.replace('init = "he"', 'init = "caffe"'))
    setting = make_setting(tmp_path, recipe=str(recipe), treatments=("random", "random-he", "transfer"))
    small, he, copy = (Cell(0, "B", t, 3) for t in ("random", "random-he", "transfer"))
    members = build_cohort(setting, [small, he, copy], CPU)._members
    start = {m.cell: {k: v.detach() for k, v in m.trainee.net.named_weights().items()} for m in members}
    for layer in ("conv1", "conv2", "conv3", "conv4", "fc6"):  # the same draws, at another scale
        ours, theirs = start[he][f"{layer}.weight"], start[small][f"{layer}.weight"]
        assert float(ours.std()) == pytest.approx((2 / ours[0].numel()) ** 0.5, rel=0.15), layer
        torch.testing.assert_close(ours / ours.std(), theirs / theirs.std())
        assert not start[he][f"{layer}.bias"].any()
    # The paper's pixels are 0..255: He's values as they stand would make the loss explode within three steps.
    papers = replace(setting.study, recipe=replace(setting.study.recipe, scale=1.0))
    drawn = [start_weights(study, "random", 0, "B", 4, "he") for study in (setting.study, papers)]
    torch.testing.assert_close(drawn[1]["conv1.weight"] * 64, drawn[0]["conv1.weight"])
    assert torch.equal(drawn[1]["conv2.weight"], drawn[0]["conv2.weight"])
    train(setting, [small, copy])
    expected = trained(setting, [small, copy])
    train(setting, [small, he, copy])
    found = trained(setting, [small, he, copy])
    assert same({label: found[label] for label in expected}, expected)
    assert not torch.equal(found["H3B.s0"]["conv1.weight"], found["R3B.s0"]["conv1.weight"])
    train(setting, [he])
    assert same(trained(setting, [he]), {"H3B.s0": found["H3B.s0"]})


def test_validation_is_the_plain_accuracy_of_the_stored_network(setting: Setting) -> None:
    cell = Cell(0, "B", "transfer+", 3)
    heard = train(setting, [cell])
    (last,) = [m.evaluations[-1] for m in heard if isinstance(m, Checked)][-1:]
    stored, about = weights.load(weights_path(setting.folder, cell))
    assert about["mean"] == "means/A.npy"
    cohort = build_cohort(setting, [cell], CPU)
    net = cohort._members[0].trainee.net
    net.load(stored)
    hits = count = 0
    for batch in cohort._target.feed.val():
        hits += int((net(batch.pictures["A"]).argmax(1) == batch.labels).sum())
        count += len(batch.labels)
    assert count == 15
    assert last.val_top1 == pytest.approx(hits / count)


def test_a_diverged_cell_is_reported_and_leaves_the_others_as_they_are(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    sick, well = Cell(0, "B", "transfer+", 2), Cell(0, "B", "transfer", 5)
    train(setting, [well])
    expected = trained(setting, [well])
    build = Cohort._build_member

    def spoil(self: Cohort, cell: Cell, fresh: dict[str, Tensor]) -> object:
        member = build(self, cell, fresh)
        if cell == sick:
            with torch.no_grad():
                member.trainee.net.stages[7].weight[0, 0] = float("inf")
        return member

    monkeypatch.setattr(Cohort, "_build_member", spoil)
    heard = train(setting, [sick, well])
    ends = {m.cell: m for m in heard if isinstance(m, Ended)}
    assert ends[sick].state == "diverged"
    assert "finite" in ends[sick].reason
    assert ends[well].state == "done"
    assert same(trained(setting, [well]), expected)
    assert not weights_path(setting.folder, sick).exists()


def test_a_network_that_learned_nothing_is_said_to_be_stuck(tmp_path: Path) -> None:
    setting = make_setting(tmp_path, lr=1e-9)
    (end,) = [m for m in train(setting, [Cell(0, "A", "transfer", 1)]) if isinstance(m, Ended)]
    assert end.state == "done"
    assert "no better than chance" in end.reason


def test_bfloat16_training_is_close_to_float32(tmp_path: Path) -> None:
    losses = {}
    for precision in ("fp32", "bf16"):
        setting = make_setting(tmp_path / precision, precision=precision)
        heard = train(setting, [Cell(0, "B", "transfer", 2)])
        losses[precision] = [m.evaluations[-1].val_loss for m in heard if isinstance(m, Checked)][-1]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.05)
    assert losses["bf16"] != losses["fp32"]
