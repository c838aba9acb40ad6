"""The check that the stages of a network compute what the model itself does, to the bit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from fasttransfer.core.errors import InputError
from fasttransfer.networks.architecture import StepDraws
from fasttransfer.networks.random_modules import StageDraws, random_modules


@torch.no_grad()
def check_stages(name: str, model: nn.Module, bodies: Sequence[fx.GraphModule], side: int) -> None:
    """Compare the stages with the model in training and evaluation, on two images, with the same masks.

    Args:
        name: of the network, for the message.
        model: with its random modules replaced; its parameters are overwritten.
        bodies: the stages of such a model.
        side: of the images in pixels.

    Raises:
        InputError: outputs or buffers differ, or the model draws by itself in training.
    """
    generator = torch.Generator().manual_seed(0)
    _fill(model, generator)
    model.to(memory_format=torch.channels_last)
    images = torch.randn(2, 3, side, side, generator=generator).contiguous(memory_format=torch.channels_last)
    stages = [fx.GraphModule(model, body.graph) for body in bodies]  # they share the model's modules
    passes = [StageDraws(number) for number in range(1, len(stages) + 1)]
    for stage, draws in zip(stages, passes, strict=True):
        for module in random_modules(stage):
            module.draws = draws
    keys = {number: number for number in range(1, len(stages) + 1)}
    step = StepDraws(keys, torch.zeros((), dtype=torch.int64), 0.5)
    buffers = dict(model.named_buffers())
    for is_training in (False, True):
        model.train(is_training)
        before = {key: buffer.clone() for key, buffer in buffers.items()}
        results = []
        for parts in ([model], stages):
            for key, buffer in buffers.items():
                buffer.copy_(before[key])
            for draws in passes:
                draws.start(step if is_training else None)
            results.append([_run(name, parts, images), *(buffer.clone() for buffer in buffers.values())])
        for ours, own in zip(*results, strict=True):
            if not torch.allclose(ours.float(), own.float(), rtol=0, atol=0, equal_nan=True):
                raise InputError(f"{name} computes something else in stages than as a whole: choose another model")


def _fill(model: nn.Module, generator: torch.Generator) -> None:
    """Give the parameters random values: a library sets some to zero, which would hide a branch."""
    values = torch.randn(2**16 + 1, generator=generator)
    for parameter in model.parameters():
        scaled = values * (parameter[0].numel() if parameter.dim() > 1 else 1) ** -0.5
        flat = parameter.view(-1)
        for first in range(0, len(flat), len(values)):
            flat[first : first + len(values)] = scaled[: len(flat) - first]


def _run(name: str, parts: Sequence[nn.Module], x: Tensor) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        before = torch.get_rng_state()
        for part in parts:
            x = part(x)
        if not torch.equal(torch.get_rng_state(), before):
            raise InputError(
                f"{name} draws random numbers in a way that cannot be repeated, such as dropout of attention weights: "
                "choose another model"
            )
    return x
