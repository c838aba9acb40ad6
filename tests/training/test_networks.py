"""Networks of libraries in a study: frozen stages stay as they were copied, runs resume exactly, cells do not mix."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchvision
from studies import make_setting, never, same, tiny_choices, train, trained
from torch import Tensor

from fasttransfer import study
from fasttransfer.core import devices, tensor_files
from fasttransfer.core.errors import InputError
from fasttransfer.study import paths
from fasttransfer.study.cells import Cell, base
from fasttransfer.training import study_plan
from fasttransfer.training.checkpoint import load_network
from fasttransfer.training.cohort_builder import StudyContext, build_cohort

RESNET = {"network": "torchvision:resnet18", "cuts": ("layer1", "layer2", "layer3"), "recipe": "small"}
MOBILENET = {
    "network": "torchvision:mobilenet_v3_small",
    "cuts": ("features.3", "features.8"),
    "recipe": "small",
}  # draws a dropout, has batch normalisation
VIT = {"network": "timm:vit_tiny_patch16_224", "cuts": ("blocks.3", "blocks.7"), "recipe": "small-adamw"}


@pytest.fixture(autouse=True)
def _as_a_worker() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(devices.choose_threads("cpu"))
    yield
    torch.set_num_threads(threads)


def setting_of(tmp_path: Path, network: dict[str, object], **changes: object) -> StudyContext:
    """Return a study of four steps, with two checks, with both bases trained."""
    recipe = tmp_path / "recipe.toml"
    text = (Path(study.__path__[0]) / "recipes" / f"{network['recipe']}.toml").read_text()
    recipe.write_text(text.replace("checks = 10", "checks = 2"))
    options = {"size": 32, "steps": 4, "batch": 4, **network, "recipe": str(recipe), **changes}
    return make_setting(tmp_path, **options)


def is_statistic(name: str) -> bool:
    return name.endswith(("running_mean", "running_var", "num_batches_tracked"))


@pytest.mark.parametrize("network", [RESNET, MOBILENET, VIT], ids=["resnet18", "mobilenet", "vit"])
def test_a_cell_of_any_network_equals_the_cell_alone_and_resumes_to_the_bit(
    tmp_path: Path, network: dict[str, object]
) -> None:
    if str(network["network"]).startswith("timm:"):
        pytest.importorskip("timm")
    setting = setting_of(tmp_path, network)
    last = setting.study.recipe.network.cuts[-1]
    cells = [Cell(0, "B", "transfer", 1), Cell(0, "B", "selffer+", 2), Cell(0, "B", "random", last)]
    train(setting, cells)
    together = trained(setting, cells)
    for cell in cells:
        train(setting, [cell])
        assert same(trained(setting, [cell]), {cell.label: together[cell.label]}), cell.name
    steps = iter(range(100))
    train(setting, cells, lambda: next(steps) == 1)
    checkpoint = tensor_files.load(paths.checkpoint_file(setting.folder, cells[1]))
    assert checkpoint[1]["step"] == 1
    train(setting, cells)
    assert same(trained(setting, cells), together)


def test_frozen_stages_keep_the_statistics_that_were_copied_and_trained_ones_renew_theirs(tmp_path: Path) -> None:
    """The mistake that users of other trainers make: frozen batch normalisation that goes on adapting."""
    setting = setting_of(tmp_path, RESNET)
    network, source = setting.study.recipe.network, load_network(setting.folder, base("A", 0))
    cells = [Cell(0, "B", "transfer", 2), Cell(0, "B", "transfer+", 2)]
    train(setting, cells)
    frozen, tuned = (load_network(setting.folder, cell) for cell in cells)
    copied = network.names(0, 2)
    assert any(map(is_statistic, copied))
    for name in copied:
        assert torch.equal(frozen[name], source[name]), name
        assert not torch.equal(tuned[name], source[name]), name
    fresh = [name for name in network.names(2) if name.endswith("running_mean")]
    assert fresh and all(frozen[name].count_nonzero() for name in fresh)


def test_frozen_weights_do_not_decay(tmp_path: Path) -> None:
    setting = setting_of(tmp_path, RESNET)
    decaying = replace(setting.study, recipe=replace(setting.study.recipe, weight_decay=0.5))
    cell = Cell(0, "B", "selffer", 2)
    train(replace(setting, study=decaying), [cell])
    source, found = load_network(setting.folder, base("B", 0)), load_network(setting.folder, cell)
    assert all(torch.equal(found[name], source[name]) for name in setting.study.recipe.network.names(0, 2))


def test_a_trained_network_loads_into_the_librarys_own_model_and_scores_as_recorded(tmp_path: Path) -> None:
    setting = setting_of(tmp_path, RESNET)
    state, about = tensor_files.load(paths.weights_file(setting.folder, base("B", 0)))
    model = torchvision.models.resnet18(num_classes=3)
    model.load_state_dict(state)
    cohort = build_cohort(setting, [base("B", 0)], torch.device("cpu"))
    images, labels = [], []
    for batch in cohort._target.feed.val():
        images.append(batch.images["channels"])
        labels.append(batch.labels)
    cohort._target.feed.close()
    std = torch.tensor(setting.study.recipe.network.std).view(3, 1, 1)  # type: ignore[attr-defined]
    with torch.no_grad():
        hits = model.eval()(torch.cat(images) / std).argmax(1) == torch.cat(labels)
    assert float(hits.float().mean()) == pytest.approx(about["evaluations"][-1]["val_top1"], abs=1e-6)


@pytest.mark.parametrize("network", [RESNET, MOBILENET], ids=["resnet18", "mobilenet"])
def test_cells_that_read_cached_features_equal_live_ones(tmp_path: Path, network: dict[str, object]) -> None:
    setting = setting_of(tmp_path, network, views=2)
    last = setting.study.recipe.network.cuts[-1]
    cells = [Cell(0, "B", "transfer", 1), Cell(0, "B", "selffer", 2), Cell(0, "B", "random", last)]
    train(replace(setting, features="cache"), cells)
    cached = trained(setting, cells)
    train(replace(setting, features="live"), cells)
    assert same(trained(setting, cells), cached)


def pretrained_file(folder: Path, classes: int = 7) -> tuple[str, dict[str, Tensor]]:
    """Write the state of a ResNet-18 of other classes, as its library saves it."""
    torch.manual_seed(1)
    state = torchvision.models.resnet18(num_classes=classes).state_dict()
    safetensors.torch.save_file(state, folder / "resnet.safetensors")
    return str(folder / "resnet.safetensors"), state


def test_pretrained_stages_are_those_of_the_file_frozen_and_the_start_of_fine_tuned_ones(tmp_path: Path) -> None:
    weights, state = pretrained_file(tmp_path)
    setting = setting_of(tmp_path, RESNET, weights=weights, lr=1e-6)
    Path(weights).unlink()  # the study has its own copy
    cells = [Cell(0, "B", "pretrained", 2), Cell(0, "B", "pretrained+", 3)]
    assert set(cells) <= set(setting.study.cells()) and [cell.name for cell in cells] == ["P2B", "P3B+"]
    assert not [cell.needs for cell in cells if cell.needs]
    train(setting, cells)
    frozen, tuned = (load_network(setting.folder, cell) for cell in cells)
    network = setting.study.recipe.network
    assert all(torch.equal(frozen[name], state[name]) for name in network.names(0, 2))
    for name in network.names(0, 3):
        if name.endswith("conv1.weight"):  # fine-tuned at a small learning rate
            assert 0 < (tuned[name] - state[name]).norm() < 0.01 * state[name].norm(), name
    assert frozen["fc.weight"].shape == (3, 512)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda state: state.pop("layer1.0.conv1.weight"), "layer1.0.conv1.weight (64, 64, 3, 3) is missing"),
        (
            lambda state: state.update({"conv1.weight": torch.zeros(3, 3)}),
            "conv1.weight is (3, 3) and should be (64, 3",
        ),
        (lambda state: state.clear(), "and 72 more"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_their_first_keys(tmp_path: Path, spoil: object, sentence: str) -> None:
    _, state = pretrained_file(tmp_path)
    spoil(state)  # type: ignore[operator]
    state.setdefault("other", torch.zeros(1))
    safetensors.torch.save_file(state, tmp_path / "bad.safetensors")
    with pytest.raises(InputError) as refused:
        study_plan.make_plan(tiny_choices(tmp_path, size=32, weights=str(tmp_path / "bad.safetensors"), **RESNET))
    assert sentence in str(refused.value)


def test_a_pickle_gives_its_tensors_and_no_code(tmp_path: Path) -> None:
    _, state = pretrained_file(tmp_path)
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, tmp_path / "good.pth")
    torch.save({"state_dict": never}, tmp_path / "bad.pth")
    said: list[str] = []
    choices = tiny_choices(tmp_path, size=32, weights=str(tmp_path / "good.pth"), **RESNET)
    plan = study_plan.make_plan(choices, log=said.append)
    assert plan.weights is not None and torch.equal(plan.weights.state["conv1.weight"], state["conv1.weight"])
    assert len(said) == 1 and "is a pickle" in said[0]
    with pytest.raises(InputError, match="cannot be read"):
        study_plan.make_plan(replace(choices, weights=str(tmp_path / "bad.pth")))
