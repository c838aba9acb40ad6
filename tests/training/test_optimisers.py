"""The optimisers of torch against torch's own used plainly, over a stop in the middle, and with smoothed labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from devices import DEVICES
from studies import RECIPE, make_setting, same, train, trained
from torch import Tensor

from fasttransfer.core import randomness
from fasttransfer.networks.architecture import StepDraws
from fasttransfer.networks.caffenet import CAFFENET_MINI
from fasttransfer.study.cells import Cell
from fasttransfer.study.recipe import Recipe, load_recipe
from fasttransfer.training.optimisers import Optimiser, make_optimiser
from fasttransfer.training.step import StageTrainer

KINDS = ("sgd", "adamw")
RATES = (0.5, 0.25, 0.25, 0.0625, 0.5)  # powers of two: the same number in float32 and float64
CPU = torch.device("cpu")


def recipe_of(kind: str, **changes: float) -> Recipe:
    """Return the small recipe with an optimiser of torch, whose decay shows after a step."""
    made = replace(load_recipe("mini"), optimiser=kind, bias_lr=1.0, bias_decay=0.0, weight_decay=0.125, momentum=0.75)
    return replace(made, beta2=0.875, **changes)  # type: ignore[arg-type]


def draw_weights(device: str = "cpu") -> dict[str, Tensor]:
    """Return the weights of a convolution, of a normalisation, and of a linear layer, as networks lay them out."""
    torch.manual_seed(0)
    shapes = {"conv.weight": (6, 3, 5, 5), "norm.weight": (6,), "norm.bias": (6,), "fc.weight": (4, 6), "fc.bias": (4,)}
    weights = {name: torch.randn(shape) for name, shape in shapes.items()}
    weights["conv.weight"] = weights["conv.weight"].contiguous(memory_format=torch.channels_last)
    return {name: weight.to(device) for name, weight in weights.items()}


def draw_gradients(step: int, weights: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Return the gradients of a step in contiguous memory, which is not the weights' own layout."""
    torch.manual_seed(1 + step)
    return [torch.randn(weight.shape).to(weight.device, dtype) for weight in weights.values()]


def run(optimiser: Optimiser, weights: dict[str, Tensor], steps: range) -> None:
    for step in steps:
        device = weights["fc.bias"].device
        optimiser.step(draw_gradients(step, weights), torch.tensor(RATES[step], device=device))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_those_of_torch_used_plainly(kind: str, dtype: torch.dtype, device: str) -> None:
    """The learning rate changes from step to step, and one-dimensional weights do not decay."""
    ours, plain = draw_weights(device), draw_weights(device)
    groups = [
        {"params": [w for w in plain.values() if w.dim() > 1], "weight_decay": 0.125},
        {"params": [w for w in plain.values() if w.dim() == 1], "weight_decay": 0.0},
    ]
    theirs = (
        torch.optim.SGD(groups, lr=1.0, momentum=0.75, foreach=False)
        if kind == "sgd"
        else torch.optim.AdamW(groups, lr=1.0, betas=(0.75, 0.875), foreach=False)
    )
    optimiser = make_optimiser(recipe_of(kind), ours, ())
    for step, lr in enumerate(RATES):
        gradients = draw_gradients(step, ours, dtype)
        optimiser.step(gradients, torch.tensor(lr, device=device))
        for group in theirs.param_groups:
            group["lr"] = lr
        for weight, gradient in zip(plain.values(), gradients, strict=True):
            weight.grad = gradient.float()
        theirs.step()
        for name, weight in ours.items():
            torch.testing.assert_close(weight, plain[name], rtol=1e-5, atol=1e-6, msg=f"{name} after step {step}")


@pytest.mark.parametrize("kind", KINDS)
def test_state_has_all_that_the_next_step_depends_on(kind: str) -> None:
    whole, stopped = draw_weights(), draw_weights()
    run(make_optimiser(recipe_of(kind), whole, ()), whole, range(5))
    first = make_optimiser(recipe_of(kind), stopped, ())
    run(first, stopped, range(3))
    second = make_optimiser(recipe_of(kind), stopped, ())
    assert second.state.keys() == first.state.keys()
    for name, own in second.state.items():
        assert not own.any()
        own.copy_(first.state[name])
    run(second, stopped, range(3, 5))
    assert all(torch.equal(weight, whole[name]) for name, weight in stopped.items())


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_in_bfloat16_reads_the_rounded_weights(kind: str) -> None:
    x, labels = torch.randn(4, *CAFFENET_MINI.cut_shape(6)).bfloat16(), torch.arange(4)
    begin = CAFFENET_MINI.draw(5, "he", lambda stage: randomness.key(0, "test", stage), start=6)
    trainer = StageTrainer(CAFFENET_MINI.build(5, "bf16", CPU, start=6), 6, begin, recipe_of(kind))
    trainer.step(x, labels, StepDraws({}, torch.tensor(0), 0.0), torch.tensor(0.5))
    read = trainer.net.named_weights(6)
    assert {weight.dtype for weight in read.values()} == {torch.bfloat16, torch.float32}
    for name, weight in trainer.weights.items():
        assert not torch.equal(weight, begin[name])
        assert torch.equal(read[name], weight.to(read[name].dtype))


def after(steps: int) -> Callable[[], bool]:
    """Return a function that says stop after `steps` steps."""
    calls = iter(range(10_000))
    return lambda: next(calls) == steps


@pytest.mark.parametrize("kind", KINDS)
def test_training_goes_on_from_a_checkpoint_to_the_same_bits(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "torch.toml"
    path.write_text(RECIPE.replace("bias_lr = 2.0", f'bias_lr = 1.0\noptimiser = "{kind}"\nlabel_smoothing = 0.1'))
    setting = make_setting(tmp_path, recipe=str(path))
    cells = [Cell(0, "B", "transfer", 3), Cell(0, "B", "transfer+", 5)]
    train(setting, cells)
    undisturbed = trained(setting, cells)
    for steps in (5, 4):
        train(setting, cells, after(steps))
        assert len(list(setting.folder.glob("checkpoints/*"))) == len(cells)
    train(setting, cells)
    assert same(trained(setting, cells), undisturbed)


def test_smoothed_labels_reach_loss_and_gradients() -> None:
    x, labels = torch.randn(4, *CAFFENET_MINI.cut_shape(6)), torch.arange(4)
    begin = CAFFENET_MINI.draw(5, "he", lambda stage: randomness.key(0, "test", stage), start=6)
    losses, weights = {}, {}
    for smoothing in (0.0, 0.25):
        net = CAFFENET_MINI.build(5, "fp32", CPU, start=6)
        trainer = StageTrainer(net, 6, begin, recipe_of("sgd", label_smoothing=smoothing))
        with torch.no_grad():
            expected = F.cross_entropy(net(x, start=6), labels, label_smoothing=smoothing)
        losses[smoothing] = trainer.step(x, labels, StepDraws({}, torch.tensor(0), 0.0), torch.tensor(0.5))
        assert torch.equal(losses[smoothing], expected)
        weights[smoothing] = trainer.weights["fc8.weight"]
    assert losses[0.0] != losses[0.25] and not torch.equal(weights[0.0], weights[0.25])
