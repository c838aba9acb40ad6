"""The weights of a cell depend on the study alone: not on other cells, the division into jobs, stops or restarts."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from devices import DEVICES
from studies import RECIPE, make_setting, never, same, train, trained
from torch import Tensor

from fasttransfer.core import devices, tensor_files
from fasttransfer.networks.caffenet import CAFFENET
from fasttransfer.study.cells import TASKS, TREATMENTS, Cell, base, base_plus
from fasttransfer.study.paths import weights_file
from fasttransfer.study.records import Evaluation
from fasttransfer.training.checkpoint import load_end
from fasttransfer.training.cohort import Cohort
from fasttransfer.training.cohort_builder import StudyContext, build_cohort
from fasttransfer.training.draws import image_stream, start_weights
from fasttransfer.training.messages import Checked, Ended, Message

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _as_a_worker() -> Iterator[None]:
    """Use a worker's number of threads, and kernels that add in a fixed order."""
    before, torch.backends.cudnn.deterministic = torch.backends.cudnn.deterministic, True
    threads = torch.get_num_threads()
    torch.set_num_threads(devices.choose_threads("cpu"))
    yield
    torch.set_num_threads(threads)
    torch.backends.cudnn.deterministic = before


@pytest.fixture
def setting(tmp_path: Path) -> StudyContext:
    """Make a study's folder with both bases trained."""
    return make_setting(tmp_path)


def after(steps: int) -> Callable[[], bool]:
    """Return a function that says stop after `steps` steps."""
    calls = iter(range(10_000))
    return lambda: next(calls) == steps


def ends_in(heard: Iterable[Message]) -> dict[Cell, Ended]:
    return {m.cell: m for m in heard if isinstance(m, Ended)}


def checks_in(heard: Iterable[Message]) -> dict[Cell, tuple[Evaluation, ...]]:
    return {m.cell: m.evaluations for m in heard if isinstance(m, Checked)}


def all_cells(target: str = "B") -> list[Cell]:
    return [
        base_plus(target, 0, 8),
        *(Cell(0, target, treatment, n) for treatment in TREATMENTS for n in CAFFENET.cuts),
    ]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_cell_trained_with_others_equals_the_cell_trained_alone(tmp_path: Path, precision: str, device: str) -> None:
    """Train every cell of a target over the end of an epoch, a check and a drop of the learning rate."""
    setting, cells = make_setting(tmp_path, precision=precision, device=device, steps=6), all_cells()
    checks = checks_in(train(setting, cells))
    together = trained(setting, cells)
    for cell in cells:
        alone = checks_in(train(setting, [cell]))
        assert same(trained(setting, [cell]), {cell.label: together[cell.label]}), cell.name
        assert alone[cell] == checks[cell]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_no_history_of_a_cohort_changes_a_bit(
    tmp_path: Path, precision: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts, stops at odd steps, cells that join, leave, diverge and are given up: the rest are the cells alone.

    Behind the paper's small Gaussian little is learned, so that some are given up half way. The copies start from
    bases that did learn: those of the same study from He's values.
    """
    folder = tmp_path / "small.toml"
    folder.write_text(RECIPE.replace('init = "he"', 'init = "caffe"').replace("give_up = 1.0", "give_up = 0.5"))
    changes = {"precision": precision, "device": device, "lr": 0.02, "treatments": ("random", "random-he")}
    setting = make_setting(tmp_path, recipe=str(folder), **changes)
    learned = replace(setting.study, recipe=replace(setting.study.recipe, init="he"))
    for task in TASKS:
        train(replace(setting, study=learned), [base(task, 0)])
    cells = [Cell(0, "B", t, n) for t, n in (
        ("transfer", 3), ("transfer", 7), ("selffer", 1), ("selffer", 5), ("transfer+", 2), ("selffer+", 7),
        ("random-he", 2), ("random-he", 6), ("random", 4), ("base+", 8),
    )]  # fmt: skip
    sick = Cell(0, "B", "transfer+", 6)
    build = Cohort._build_member

    def spoil(self: Cohort, cell: Cell, fresh: dict[str, Tensor]) -> object:
        member = build(self, cell, fresh)
        if cell == sick:
            member.trainee.weights["fc8.bias"].fill_(math.inf)
        return member

    monkeypatch.setattr(Cohort, "_build_member", spoil)
    ends, checks, expected = {}, {}, {}
    for cell in cells:
        heard = train(setting, [cell])
        ends |= ends_in(heard)
        checks |= checks_in(heard)
        expected |= trained(setting, [cell])
    assert {end.state for end in ends.values()} == {"done", "stuck"}
    for seed in range(3):
        draw = random.Random(seed)
        found: dict[Cell, tuple[Evaluation, ...]] = {}
        met: dict[Cell, Ended] = {}
        while left := [cell for cell in [*cells, sick] if cell not in met]:
            some = draw.sample(left, draw.randint(1, len(left)))
            heard = train(setting, some, after(draw.choice([1, 3, 5, 7, 11, 99])))
            found |= checks_in(heard)
            met |= ends_in(heard)
        assert met.pop(sick).state == "diverged"
        assert met == ends
        assert same(trained(setting, cells), expected), seed
        assert {cell: found[cell] for cell in checks} == checks
        assert not list((setting.folder / "checkpoints").iterdir())


@pytest.mark.parametrize(("stop_after", "precision"), [(1, "fp32"), (4, "fp32"), (5, "bf16"), (11, "bf16")])
def test_a_stopped_cohort_goes_on_as_if_it_had_not(tmp_path: Path, stop_after: int, precision: str) -> None:
    setting = make_setting(tmp_path, precision=precision)
    cells = [Cell(0, "B", t, n) for t, n in (("transfer", 3), ("selffer+", 7), ("random", 6), ("transfer", 7))]
    undisturbed = checks_in(train(setting, cells))
    expected = trained(setting, cells)
    train(setting, cells, after(stop_after))
    assert {p.stem for p in (setting.folder / "checkpoints").iterdir()} == {c.label for c in cells}
    assert checks_in(train(setting, cells)) == undisturbed
    assert same(trained(setting, cells), expected)
    assert not list((setting.folder / "checkpoints").iterdir())


def test_cells_at_different_steps_catch_up(setting: StudyContext) -> None:
    """After a kill between two checkpoint files, the cells of a cohort stand at different steps."""
    ahead, behind = Cell(0, "B", "transfer+", 2), Cell(0, "B", "transfer", 5)
    train(setting, [ahead, behind])
    expected = trained(setting, [ahead, behind])
    train(setting, [ahead], after(7))
    train(setting, [ahead, behind])
    assert same(trained(setting, [ahead, behind]), expected)


def test_a_damaged_checkpoint_is_quarantined_and_never_resumed(setting: StudyContext) -> None:
    cell = Cell(0, "B", "transfer", 2)
    train(setting, [cell])
    expected = trained(setting, [cell])
    train(setting, [cell], after(6))
    path = setting.folder / "checkpoints" / f"{cell.label}.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1  # one bit of one weight
    path.write_bytes(content)
    train(setting, [cell])
    assert same(trained(setting, [cell]), expected)
    assert path.with_name(path.name + ".damaged").exists()


def test_frozen_layers_are_the_sources_to_the_bit(setting: StudyContext) -> None:
    sources = {t: tensor_files.load(weights_file(setting.folder, base(t, 0)))[0] for t in ("A", "B")}
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


def test_new_layers_start_alike_in_all_cells_and_not_as_the_base_did(setting: StudyContext) -> None:
    cells = [Cell(0, "B", t, n) for t, n in (("transfer", 3), ("selffer", 3), ("transfer+", 2), ("random", 1))]
    members = build_cohort(setting, cells, CPU)._members
    firsts = [m.trainee.weights["conv4.weight"] for m in members]
    assert all(torch.equal(firsts[0], w) for w in firsts[1:])
    (of_base,) = build_cohort(setting, [base("B", 0)], CPU)._members
    assert not torch.equal(firsts[0], of_base.trainee.weights["conv4.weight"])


def test_a_base_begins_with_a_smaller_first_layer_and_random_layers_do_not(tmp_path: Path) -> None:
    study = make_setting(tmp_path).study
    small = replace(study, recipe=replace(study.recipe, first_init=0.125))
    for purpose, factor in (("base", 0.125), ("random", 1.0), ("cell", 1.0)):
        usual, found = (start_weights(s, purpose, 0, "B", 4, "he") for s in (study, small))
        assert torch.equal(found["conv1.weight"], usual["conv1.weight"] * factor), purpose
        assert all(torch.equal(found[name], usual[name]) for name in usual if name != "conv1.weight")


def test_the_random_control_from_hes_values(tmp_path: Path) -> None:
    """All its layers start from He's values under a recipe of small ones; the other cells stay as they are."""
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


def test_validation_is_the_plain_accuracy_of_the_stored_network(setting: StudyContext) -> None:
    cell = Cell(0, "B", "transfer+", 3)
    heard = train(setting, [cell])
    (last,) = [m.evaluations[-1] for m in heard if isinstance(m, Checked)][-1:]
    stored, about = tensor_files.load(weights_file(setting.folder, cell))
    assert about["mean"] == "means/A.npy"
    cohort = build_cohort(setting, [cell], CPU)
    net = cohort._members[0].trainee.net
    net.load(stored)
    hits = count = 0
    for batch in cohort._target.feed.val():
        hits += int((net(batch.images["A"]).argmax(1) == batch.labels).sum())
        count += len(batch.labels)
    assert count == 15
    assert last.val_top1 == pytest.approx(hits / count)


def test_a_diverged_cell_is_reported_and_leaves_the_others_as_they_are(
    setting: StudyContext, monkeypatch: pytest.MonkeyPatch
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
    assert not weights_file(setting.folder, sick).exists()


def test_a_network_that_learned_nothing_is_reported_as_stuck(tmp_path: Path) -> None:
    setting = make_setting(tmp_path, lr=1e-9)  # its recipe gives nothing up
    (end,) = [m for m in train(setting, [Cell(0, "A", "transfer", 1)]) if isinstance(m, Ended)]
    assert end.state == "done"
    assert "no better than chance" in end.reason


def test_a_network_at_chance_is_given_up_and_leaves_the_others_as_they_are(tmp_path: Path) -> None:
    """A network learns nothing from the paper's small Gaussian on small images, and something from He's values."""
    recipe = tmp_path / "small.toml"
    recipe.write_text(RECIPE.replace('init = "he"', 'init = "caffe"').replace("give_up = 1.0", "give_up = 0.5"))
    setting = make_setting(tmp_path, recipe=str(recipe), lr=0.02, steps=24, treatments=("random", "random-he"))
    small, he = Cell(0, "B", "random", 3), Cell(0, "B", "random-he", 3)
    train(setting, [he])
    expected = trained(setting, [he])
    heard = train(setting, [small, he])
    ends = {m.cell: m for m in heard if isinstance(m, Ended)}
    assert (ends[small].state, ends[small].steps) == ("stuck", 16)  # the first of its checks after half of its steps
    assert (ends[he].state, ends[he].steps) == ("done", 24)
    assert same({he.label: trained(setting, [he])[he.label]}, expected)
    found = load_end(setting.folder, setting.study, small)
    assert found is not None and found[1] == ends[small]
    assert [e.step for e in found[0].evaluations] == [8, 16]
    # Stopped on the way, it is given up at the same step with the same bits.
    lost = trained(setting, [small])
    train(setting, [small], after(13))
    assert [m for m in train(setting, [small]) if isinstance(m, Ended)] == [ends[small]]
    assert same(trained(setting, [small]), lost)


def test_bfloat16_training_is_close_to_float32(tmp_path: Path) -> None:
    losses = {}
    for precision in ("fp32", "bf16"):
        setting = make_setting(tmp_path / precision, precision=precision)
        heard = train(setting, [Cell(0, "B", "transfer", 2)])
        losses[precision] = [m.evaluations[-1].val_loss for m in heard if isinstance(m, Checked)][-1]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.05)
    assert losses["bf16"] != losses["fp32"]


def test_base_plus_goes_on_from_every_stage_of_its_base_with_draws_of_its_own(setting: StudyContext) -> None:
    further = base_plus("B", 0, 8)
    cohort = build_cohort(setting, [further], CPU)
    begun = tensor_files.load(weights_file(setting.folder, base("B", 0)))[0]
    (member,) = cohort._members
    assert begun.keys() == member.trainee.weights.keys()
    assert all(torch.equal(begun[name], w) for name, w in member.trainee.weights.items())
    assert all(not v.any() for v in member.trainee.optimiser.state.values())
    assert member.trainee.start == 0  # all stages are trained
    cohort.run(lambda _: None, never, 1e9)
    ended = tensor_files.load(weights_file(setting.folder, further))[0]
    assert not any(torch.equal(begun[name], ended[name]) for name in begun)
    streams = [image_stream(setting.study, cell, 30) for cell in (base("B", 0), further, Cell(0, "B", "selffer+", 7))]
    assert streams[1] == streams[2] != streams[0]


def test_which_validation_images_the_last_check_got_right_is_kept_through_stops(setting: StudyContext) -> None:
    cells = [Cell(0, "B", "transfer", 3), base_plus("B", 0, 8)]
    heard = train(setting, cells)
    ends, checks = ends_in(heard), checks_in(heard)
    images = 3 * 5
    for cell in cells:
        bits = np.unpackbits(np.frombuffer(ends[cell].correct or b"", np.uint8))
        assert len(bits) == 16 and not bits[images:].any()
        assert bits.sum() == round(images * checks[cell][-1].val_top1)
        assert load_end(setting.folder, setting.study, cell) == (Checked(cell, checks[cell]), ends[cell])
    for cell in cells:
        weights_file(setting.folder, cell).unlink()
    # Stopped between the last check and the end: what that check found comes out of the checkpoint.
    steps = setting.study.recipe.steps_for(30)
    assert not ends_in(train(setting, cells, after(steps)))
    assert ends_in(train(setting, cells)) == ends


def test_a_checkpoint_of_a_network_never_checked_is_resumed(setting: StudyContext) -> None:
    cell = base_plus("B", 0, 8)
    train(setting, [cell], after(1))
    assert ends_in(train(setting, [cell]))[cell].state == "done"
