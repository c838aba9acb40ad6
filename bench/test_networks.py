"""A network of torchvision in a study against plain PyTorch: its gradients, a training step, a cohort, the cache.

ResNet-18 on images of 64 pixels, batches of 64. Values are the library's initial ones: the speed does not depend on
what a network has learned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision

from bench.test_cohorts import cohort, draw, stepping
from fasttransfer.bench.harness import Call, emulates
from fasttransfer.core import devices, tensor_files
from fasttransfer.core.files import make_folder
from fasttransfer.networks.architecture import StepDraws
from fasttransfer.networks.find import find_network
from fasttransfer.ops._conv2d_small_maps import weight_gradient
from fasttransfer.study.cells import Cell, base
from fasttransfer.study.configuration import Choices
from fasttransfer.study.paths import weights_file
from fasttransfer.study.recipe import load_recipe
from fasttransfer.training import cost, study_plan, study_setup
from fasttransfer.training.cohort_builder import StudyContext
from fasttransfer.training.step import StageTrainer

Compare = Callable[..., Any]
NETWORK, SIZE, BATCH, OUTPUTS = "torchvision:resnet18", 64, 64, 100


def ours(precision: str, device: torch.device, side: int) -> Call:
    """Return a training step of this project on random images."""
    network = find_network(NETWORK, size=side)
    net = network.build(OUTPUTS, precision, device)
    trainer = StageTrainer(net, 0, network.draw(OUTPUTS, "own", lambda stage: stage), load_recipe("small", network))
    x = torch.randn(BATCH, 3, side, side, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(OUTPUTS, (BATCH,), device=device)
    at, lr = torch.zeros((), dtype=torch.int64, device=device), torch.tensor(1e-4, device=device)
    draws = StepDraws({}, at, 0.0)
    return lambda i: trainer.step(x, labels, draws, lr)


def plain(
    precision: str, device: torch.device, side: int, layout: torch.memory_format, *, is_compiled: bool = False
) -> Call:
    """Return the step as one writes it in PyTorch, with the fused optimiser."""
    net = torchvision.models.resnet18(num_classes=OUTPUTS).to(device).to(memory_format=layout)
    decayed = [p for p in net.parameters() if p.dim() > 1]
    others = [p for p in net.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": 5e-4}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.SGD(groups, lr=1e-4, momentum=0.9, fused=True)
    x = torch.randn(BATCH, 3, side, side, device=device).contiguous(memory_format=layout)
    labels = torch.randint(OUTPUTS, (BATCH,), device=device)
    forward = torch.compile(net) if is_compiled else net

    def step(i: int) -> None:
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            logits = forward(x)
        F.cross_entropy(logits.float(), labels).backward()
        optimiser.step()

    return step


@pytest.mark.parametrize("side", [SIZE, 32])
def test_step(compare: Compare, device: torch.device, side: int) -> None:
    """In bfloat16, unless the processor emulates it, and in float32."""
    precisions = ["fp32"] if emulates(device, torch.bfloat16) else ["bf16", "fp32"]
    best, last = precisions[0], torch.channels_last
    calls = {f"fasttransfer {each}": ours(each, device, side) for each in precisions}
    calls |= {
        f"eager {best}": plain(best, device, side, torch.contiguous_format),
        f"eager {best} channels-last": plain(best, device, side, last),
        f"compiled {best} channels-last": plain(best, device, side, last, is_compiled=True),
    }
    compare(calls, sample=1.0, work=BATCH)


@pytest.mark.parametrize(
    ("channels_in", "channels_out", "side", "stride"),
    [(256, 256, 4, 1), (256, 256, 2, 1), (256, 512, 2, 2), (512, 512, 7, 1), (512, 512, 2, 1), (512, 512, 1, 1)],
)
def test_weight_gradient(
    compare: Compare, device: torch.device, channels_in: int, channels_out: int, side: int, stride: int
) -> None:
    """The gradient of the weights of 3 x 3 convolutions late in a network, as one product per tap and by PyTorch."""

    def channels_last(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device).contiguous(memory_format=torch.channels_last)

    x, weight = channels_last(BATCH, channels_in, side, side), channels_last(channels_out, channels_in, 3, 3)
    gradient = torch.randn_like(F.conv2d(x, weight, None, stride, 1))
    options = ([stride] * 2, [1, 1], [1, 1], False, [0, 0], 1, [False, True, False])
    calls = {
        "a product per tap": lambda i: weight_gradient(gradient, x, weight, (stride, stride), (1, 1)),
        "eager": lambda i: torch.ops.aten.convolution_backward(gradient, x, weight, None, *options),
    }
    compare(calls, sample=0.1, work=BATCH, precision="fp32")


@pytest.fixture
def context(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: torch.device, quick: bool
) -> Iterator[StudyContext]:
    """A study on one image per class and part, with a base of task A that nobody trained, and its own cache."""
    monkeypatch.setenv("FASTTRANSFER_CACHE", str(tmp_path / "cache"))
    threads, deterministic = torch.get_num_threads(), torch.backends.cudnn.deterministic
    images = str(draw(tmp_path / "images", (2 if quick else 12) * BATCH, SIZE))
    choices = Choices(split="random:0", data=images, network=NETWORK, size=SIZE, batch=BATCH, views=2)
    plan = study_plan.make_plan(replace(choices, device=device.type))
    stores = study_setup.open_stores(plan, lambda text: None)
    made = study_setup.open_study(plan, stores, make_folder(tmp_path / "run"))
    outputs = plan.recipe.outputs_for("A", plan.classes)
    tensor_files.save(
        weights_file(made.folder, base("A", 0)), plan.recipe.network.draw(outputs, "own", lambda stage: stage), {}
    )
    devices.configure_process(made.study.device, made.study.threads, 0)
    yield made
    torch.set_num_threads(threads)
    torch.backends.cudnn.deterministic = deterministic


def test_frozen_cells(compare: Compare, context: StudyContext, device: torch.device) -> None:
    """A frozen cell at every cut of one source: in one cohort, and in cohorts of one that take a step in turn."""
    recipe = context.study.recipe
    cuts = recipe.network.cuts
    alone = [stepping(cohort(context, [n], device)) for n in cuts]
    calls = {
        "one cohort": stepping(cohort(context, cuts, device)),
        "one after another": lambda i: [call(i) for call in alone],
    }
    sizes = recipe.network, recipe.outputs_for("B", context.classes)
    cells = [Cell(0, "B", "transfer", n) for n in cuts]
    macs = sum(cost.cohort_macs(*sizes, [cell]) for cell in cells) / cost.cohort_macs(*sizes, cells)
    facts = {"precision": context.study.precision, "arithmetic_allows": round(macs, 3)}
    compare(calls, sample=0.2, work=len(cuts) * BATCH, **facts)


@pytest.mark.parametrize("stage", ["layer2.1", "layer3.1", "layer4.1"])
def test_cached_cell(compare: Compare, context: StudyContext, device: torch.device, stage: str) -> None:
    n = context.study.recipe.network.stages.index(stage) + 1
    cached, live = cohort(context, [n], device, "cache"), cohort(context, [n], device)
    compare({"cached": stepping(cached), "live": stepping(live)}, sample=0.1, work=BATCH)
    cached._target.feed.close()
    live._target.feed.close()
