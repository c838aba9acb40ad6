"""Traced networks as architectures: state, modes, draws, and sizes."""

from __future__ import annotations

import dataclasses
import pickle
import tomllib
from importlib.metadata import version
from unittest.mock import Mock

import pytest
import tomli_w
import torch
import torchvision
from torch import Tensor, nn

from fasttransfer.core.errors import InputError
from fasttransfer.networks import traced
from fasttransfer.networks.architecture import StepDraws, rounded_cuts
from fasttransfer.networks.random_modules import RandomModule, StageDraws, replace_random_modules
from fasttransfer.networks.traced import TracedArchitecture, trace_network
from fasttransfer.networks.traced_network import TracedNetwork
from fasttransfer.ops import _conv2d_small_maps

CPU = torch.device("cpu")
NO_STEP = torch.zeros((), dtype=torch.int64)


def resnet18() -> TracedArchitecture:
    return trace_network("torchvision:resnet18", size=64)


def efficientnet() -> TracedArchitecture:
    """A model with stochastic depth."""
    return trace_network("torchvision:efficientnet_b0", size=32)


def draws_of(architecture: TracedArchitecture, step: int = 0, around: tuple[int, int] = (0, 0)) -> StepDraws:
    keys = {stage: 100 + stage for stage in architecture.random_stages}
    return StepDraws(keys, torch.tensor(step), 0.5, around)


def made(architecture: TracedArchitecture, outputs: int = 3, precision: str = "fp32") -> TracedNetwork:
    network = architecture.build(outputs, precision, CPU)
    network.load(architecture.draw(outputs, "own", lambda stage: 11))
    return network


def images_for(architecture: TracedArchitecture, count: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, 3, architecture.crop, architecture.crop, generator=generator)
    return images.contiguous(memory_format=torch.channels_last)


def test_an_architecture_survives_pickling_and_a_file() -> None:
    architecture = resnet18()
    assert pickle.loads(pickle.dumps(architecture)) == architecture
    text = tomli_w.dumps(dataclasses.asdict(architecture))
    read = TracedArchitecture(**tomllib.loads(text))
    assert read == architecture and hash(read) == hash(architecture)
    assert (read.store, read.crop, read.margin) == (72, 64, 8)
    assert trace_network("torchvision:resnet18", size=224).store == 256


def test_pixels_are_normalised_by_imagenets_constants() -> None:
    architecture = resnet18()
    assert architecture.channel_mean == pytest.approx((123.675, 116.28, 103.53))
    pixels = torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(2)).float()
    as_fed = (pixels - torch.tensor(architecture.channel_mean).view(3, 1, 1)) / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    network = made(architecture)
    model = torchvision.models.resnet18(num_classes=3)
    model.load_state_dict(network.state())
    torch.testing.assert_close(network(as_fed), model.eval()((pixels / 255 - mean) / std), rtol=1e-4, atol=1e-4)


def test_facts_name_the_librarys_version() -> None:
    facts = resnet18().facts()
    assert facts["library"] == f"torchvision {version('torchvision')}"
    assert facts["stages"] == list(resnet18().stages)


def test_images_have_the_type_that_is_asked_for() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        assert resnet18().input_form("cpu", dtype) == {"block": 1, "side": 64, "dtype": dtype}


def test_recorded_stages_that_cannot_be_made_are_refused() -> None:
    other = dataclasses.replace(resnet18(), stage_names=("conv1", "layer1.7", "fc"))
    with pytest.raises(InputError, match="install the version that the study began with"):
        other.build(3, "fp32", CPU)


def test_the_state_of_all_stages_is_that_of_the_librarys_model() -> None:
    architecture = resnet18()
    whole = torchvision.models.resnet18(num_classes=3).state_dict()
    assert set(architecture.names()) == set(whole)
    parts = [architecture.names(stage, stage + 1) for stage in range(len(architecture.stages))]
    assert [name for part in parts for name in part] == list(architecture.names())
    assert parts[0] == ("conv1.weight", *(f"bn1.{n}" for n in ("weight", "bias")), *(
        f"bn1.{n}" for n in ("running_mean", "running_var", "num_batches_tracked")
    ))  # fmt: skip
    network = made(architecture)
    assert tuple(network.state(2, 5)) == architecture.names(2, 5)
    assert set(network.named_weights()) == {name for name, _ in torchvision.models.resnet18().named_parameters()}


def test_initial_values_are_the_librarys_and_a_function_of_the_key() -> None:
    architecture = resnet18()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    drawn = architecture.draw(3, "own", lambda stage: 2**63 + 17)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(17)
    expected = torchvision.models.resnet18(num_classes=3).state_dict()
    assert all(torch.equal(drawn[name], tensor) for name, tensor in expected.items())
    drawn["fc.weight"].zero_()
    again = architecture.draw(3, "own", lambda stage: 2**63 + 17, 9)
    assert list(again) == ["fc.weight", "fc.bias"] and torch.equal(again["fc.weight"], expected["fc.weight"])
    other = architecture.draw(3, "own", lambda stage: 18, 9)
    assert not torch.equal(other["fc.weight"], expected["fc.weight"])


def test_networks_share_no_memory() -> None:
    architecture = resnet18()
    one, other = made(architecture), made(architecture)
    before = {name: tensor.clone() for name, tensor in other.state().items()}
    for tensor in one.state().values():
        tensor.fill_(3)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state().items())


def test_only_the_stages_asked_for_have_memory() -> None:
    architecture = resnet18()
    network = architecture.build(3, "fp32", CPU, start=2, stop=6)
    assert len(network.stages) == 6
    assert tuple(network.state()) == architecture.names(2, 6)
    assert list(architecture.build(3, "fp32", CPU, stop=0).stages) == []


def test_weights_lie_in_channels_last_memory() -> None:
    weights = [weight for weight in made(resnet18()).named_weights().values() if weight.dim() == 4]
    assert len(weights) == 20
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)


def statistics(network: TracedNetwork) -> dict[str, Tensor]:
    return {
        name: tensor.clone() for name, tensor in network.state().items() if ".running_" in name or "_tracked" in name
    }


def test_training_updates_batch_normalisation_as_the_librarys_model_does() -> None:
    architecture = resnet18()
    network, images = made(architecture), images_for(architecture)
    model = torchvision.models.resnet18(num_classes=3)
    model.load_state_dict(network.state())
    model.train().to(memory_format=torch.channels_last)
    logits = network(images, draws=draws_of(architecture))
    assert torch.equal(logits, model(images * (1 / torch.tensor(architecture.std).view(3, 1, 1))))
    found, expected = statistics(network), model.state_dict()
    assert len(found) == 60
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


def test_a_frozen_network_keeps_and_uses_its_statistics() -> None:
    architecture = resnet18()
    network, images = made(architecture), images_for(architecture)
    evaluated = network(images)
    trained = network(images, draws=draws_of(architecture))
    network.load(architecture.draw(3, "own", lambda stage: 11))
    network.freeze()
    before = statistics(network)
    frozen = network(images, draws=draws_of(architecture))
    assert torch.equal(frozen, evaluated) and not torch.equal(trained, evaluated)
    assert all(torch.equal(tensor, before[name]) for name, tensor in statistics(network).items())
    assert not any(weight.requires_grad for weight in network.parameters())


def test_a_frozen_stage_stays_frozen_in_another_network() -> None:
    architecture = resnet18()
    source, network, images = made(architecture).freeze(), made(architecture), images_for(architecture)
    for n in range(3):
        network.stages[n] = source.stages[n]
    before = statistics(source)
    network(images, draws=draws_of(architecture))
    assert all(torch.equal(tensor, before[name]) for name, tensor in statistics(source).items())
    assert not torch.equal(network.state()["layer4.1.bn2.running_mean"], before["layer4.1.bn2.running_mean"])


def test_without_draws_a_network_is_evaluated() -> None:
    architecture = efficientnet()
    network, images = made(architecture), images_for(architecture)
    first = network(images)
    network(images, draws=draws_of(architecture))
    network.load(architecture.draw(3, "own", lambda stage: 11))
    assert torch.equal(network(images), first)


def test_bfloat16_computes_with_float32_weights_and_returns_float32_logits() -> None:
    architecture = resnet18()
    exact, rounded, images = made(architecture), made(architecture, precision="bf16"), images_for(architecture)
    assert {weight.dtype for weight in rounded.named_weights().values()} == {torch.float32}
    features = rounded(images.bfloat16(), stop=4)
    assert features.dtype == torch.bfloat16
    logits = rounded(features, start=4)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, exact(images), rtol=0.1, atol=0.1)
    assert not torch.equal(logits, exact(images))


def test_stages_with_dropout_or_stochastic_depth_draw() -> None:
    assert resnet18().random_stages == ()
    architecture = trace_network("torchvision:alexnet", size=64)
    assert [architecture.stages[n - 1] for n in architecture.random_stages] == ["features.10", "classifier.1"]
    assert architecture.drawing_when_frozen == ()
    names = [efficientnet().stages[n - 1] for n in efficientnet().random_stages]
    assert names == list(efficientnet().stages[2:-1])  # all blocks but the first, and the dropout before the classifier


def test_masks_depend_on_the_key_the_step_and_the_stage_alone() -> None:
    architecture = trace_network("torchvision:alexnet", size=64)
    network, images = made(architecture), images_for(architecture)
    x = network(images, stop=4)
    stage = architecture.random_stages[0]
    assert stage == 5
    torch.manual_seed(1)
    first = network(x, start=4, stop=5, draws=draws_of(architecture, step=7))
    torch.manual_seed(2)
    whole = network(images, stop=5, draws=draws_of(architecture, step=7))
    assert torch.equal(first, whole)
    assert not torch.equal(first, network(x, start=4, stop=5, draws=draws_of(architecture, step=8)))
    expected = draws_of(architecture, step=7).dropout(5, network(x, start=4, stop=5), 0.5)
    assert torch.equal(first, expected)


def test_a_process_draws_its_images_part_of_the_batchs_masks() -> None:
    architecture = efficientnet()
    draws = StageDraws(architecture.random_stages[0])
    module = RandomModule(0.5, None)
    module.draws = draws
    x = torch.randn(6, 2, 3, 3)
    draws.start(draws_of(architecture))
    whole = [module(x), module(x)]
    assert not torch.equal(*whole)  # the second mask of the stage is another
    draws.start(draws_of(architecture, around=(2, 1)))
    assert all(torch.equal(module(x[2:5]), part[2:5]) for part in whole)
    for before, after in zip(x, whole[0], strict=True):
        assert not after.any() or torch.equal(after, 2 * before)


def test_stochastic_depth_drops_blocks_of_some_images() -> None:
    architecture = efficientnet()
    network, images = made(architecture), images_for(architecture, 16)
    number = architecture.stages.index("features.6.3") + 1
    assert number in architecture.random_stages
    with torch.no_grad():
        x = network(images, stop=number - 1)
        y = network(x, start=number - 1, stop=number, draws=draws_of(architecture))
        again = network(x, start=number - 1, stop=number, draws=draws_of(architecture))
    dropped = [bool(torch.equal(a, b)) for a, b in zip(x, y, strict=True)]
    assert any(dropped) and not all(dropped)
    assert torch.equal(y, again)


def test_whole_channels_are_dropped_by_dropout2d() -> None:
    model = nn.Sequential(nn.Dropout2d(0.5), nn.Dropout(0.0), nn.Dropout(0.25))
    replace_random_modules(model)
    module = model[0]
    assert isinstance(module, RandomModule) and isinstance(model[1], nn.Dropout) and isinstance(model[2], RandomModule)
    module.draws.start(StepDraws({0: 1}, NO_STEP, 0.5))
    y = module(torch.ones(4, 8, 3, 3)).flatten(2)
    assert set(y.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(y.amin(2), y.amax(2))


def test_the_bits_of_features_do_not_depend_on_the_place_in_the_batch() -> None:
    torch.set_num_threads(2)
    for name in ("torchvision:resnet18", "timm:vit_tiny_patch16_224"):
        architecture = trace_network(name, size=64)
        network, images = made(architecture).freeze(), images_for(architecture, 16)
        turned = images.flip(0).contiguous(memory_format=torch.channels_last)
        features, other = (rounded_cuts(network, x, architecture.cuts, 16) for x in (images, turned))
        few = rounded_cuts(network, images[:5], architecture.cuts, 16)
        for cut in architecture.cuts:
            assert features[cut].dtype == torch.bfloat16
            assert torch.equal(features[cut].flip(0), other[cut])
            assert torch.equal(features[cut][:5], few[cut])


@pytest.mark.parametrize(
    ("name", "weights", "macs"),
    [
        ("torchvision:resnet18", 11_689_512, 1.814e9),
        ("torchvision:vit_b_16", 86_567_656, 17.56e9),
        ("timm:convnextv2_atto", 3_708_400, 0.55e9),
    ],
)
def test_sizes_are_the_published_ones(name: str, weights: int, macs: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traced, "check_stages", lambda *_: None)  # it would take seconds at this size
    architecture = trace_network(name)
    profile = architecture.profile(1000)
    assert sum(profile.weights) == architecture.weight_count(1000) == weights
    assert sum(profile.macs) == pytest.approx(macs, rel=0.01)
    assert profile.cuts[0] == (3, 224, 224) and profile.cuts[-1] == (1000,)
    assert len(profile.cuts) == len(profile.macs) + 1 == len(architecture.stages) + 1


def test_values_count_buffers_too() -> None:
    profile, state = resnet18().profile(3), made(resnet18()).state(1, 2)
    assert profile.values[1] == sum(tensor.numel() for tensor in state.values()) == profile.weights[1] + 258


@pytest.mark.parametrize("name", ["torchvision:resnet18", "timm:vit_tiny_patch16_224", "torchvision:alexnet"])
def test_the_bytes_of_a_step_bound_those_kept_for_backward(name: str) -> None:
    architecture = trace_network(name, size=64)
    network, images = made(architecture), images_for(architecture, 8)
    storages: dict[int, tuple[Tensor, int]] = {}
    own = {weight.untyped_storage().data_ptr() for weight in network.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = (tensor, storage.nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(images, draws=draws_of(architecture))
    kept = sum(size for _, size in storages.values()) + sum(4 * weight.numel() for weight in network.parameters())
    assert kept < architecture.step_bytes(3, 8, "fp32", 0) < 2 * kept
    assert architecture.step_bytes(3, 8, "fp32", 5) < architecture.step_bytes(3, 8, "fp32", 0)


def test_a_step_in_bfloat16_takes_fewer_bytes() -> None:
    exact, rounded = (resnet18().step_bytes(3, 256, precision, 0) for precision in ("fp32", "bf16"))
    assert 0.5 * exact < rounded < 0.7 * exact


def test_weights_that_see_small_maps_get_the_librarys_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are computed by the package's own operator, the others by the library."""
    spy = Mock(wraps=_conv2d_small_maps.weight_gradient)
    monkeypatch.setattr(_conv2d_small_maps, "weight_gradient", spy)
    architecture = resnet18()
    network, model = made(architecture), torchvision.models.resnet18(num_classes=3)
    model.load_state_dict(network.state())
    model.train().to(memory_format=torch.channels_last)
    images, labels = images_for(architecture), torch.tensor([0, 1, 2, 0])
    nn.functional.cross_entropy(network(images, draws=draws_of(architecture)), labels).backward()
    assert 0 < spy.call_count < 20
    scale = 1.0 / torch.tensor(architecture.std).view(3, 1, 1)
    nn.functional.cross_entropy(model(images * scale), labels).backward()
    weights = network.named_weights()
    for name, parameter in model.named_parameters():
        ours, theirs = weights[name].grad, parameter.grad
        assert ours is not None and theirs is not None
        assert float((ours - theirs).norm()) <= 1e-5 * float(theirs.norm()), name
