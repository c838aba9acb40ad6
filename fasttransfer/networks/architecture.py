"""What the program knows of a network: stages, cuts, input, initial values and sizes.

A network is a chain of stages. Cut n is the single tensor that leaves stage n; cut 0 is the image; the last stage is
the classifier. CaffeNet is one implementation (`fasttransfer.networks.caffenet`), a model of torchvision or timm that
is cut automatically another (`fasttransfer.networks.traced`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fasttransfer import ops

KeyOf = Callable[[int], int]
"""Stage, counted from 1 -> the Philox key of its draws."""

_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15  # spreads the keys of several draws of one stage


@dataclass(frozen=True)
class StepDraws:
    """The random draws of one training step: `keys` maps a stage that draws to the Philox key of its masks.

    `step` is () int64 on the network's device. `around` is the number of images of the batch before and after those of
    this process, which other processes have: the mask is that of the whole batch. `probability` is that of CaffeNet's
    dropouts; other networks have their own.
    """

    keys: Mapping[int, int]
    step: Tensor
    probability: float
    around: tuple[int, int] = (0, 0)

    def dropout(self, stage: int, x: Tensor, probability: float | None = None, index: int = 0) -> Tensor:
        """Return `x`, (N, ...), with the mask of a stage applied.

        Args:
            stage: counted from 1.
            probability: of setting a value to zero, by default the step's own.
            index: number of the dropout within its stage.
        """
        key = (self.keys[stage] + index * _GOLDEN) & _MASK
        p = self.probability if probability is None else probability
        if self.around == (0, 0):
            return ops.dropout(x.contiguous(), key, self.step, p)
        # The operator numbers elements from the batch's first on. The padding costs little compared with the layer that
        # follows (docs/decisions/distributed.md).
        before, after = self.around
        whole = F.pad(x.contiguous(), (0, 0) * (x.dim() - 1) + (before, after))
        return ops.dropout(whole, key, self.step, p)[before : before + len(x)]


class InputForm(TypedDict):
    """The form of a network's input images, as arguments of `fasttransfer.ops.augment`."""

    block: int
    side: int
    dtype: torch.dtype


@dataclass(frozen=True)
class Profile:
    """The sizes of a network with so many outputs, for one image.

    Attributes:
        cuts: shapes at cuts 0, 1, ... up to the logits: (C, H, W), (T, E), (H, W, C) or (E,).
        macs: multiply-adds of each stage, forward.
        weights: number of parameters of each stage; values: of parameters and buffers together.
    """

    cuts: tuple[tuple[int, ...], ...]
    macs: tuple[int, ...]
    weights: tuple[int, ...]
    values: tuple[int, ...]


class StagedNetwork(nn.Module, ABC):
    """A network whose stages run from any cut to any cut.

    `stages` may hold only some first stages, where the network is read at a cut, or lack memory in those that another
    network runs.
    """

    stages: nn.ModuleList

    def forward(self, x: Tensor, *, start: int = 0, stop: int | None = None, draws: StepDraws | None = None) -> Tensor:
        """Compute cut `stop` (by default the logits) from cut `start` (0: images). `draws` is None outside training."""
        for stage in self.stages[start:stop]:
            x = stage(x, draws)
        return x

    def gradients(
        self, x: Tensor, labels: Tensor, draws: StepDraws, *, start: int, label_smoothing: float
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """Return the mean loss of a batch, and its gradients by the weights of the stages behind cut `start`.

        Args:
            x: the batch at cut `start`.
            labels: (N,) int64.

        Returns:
            The loss, float32 without dimensions, and one gradient per weight, in the order of `named_weights`.
        """
        loss = F.cross_entropy(self(x, start=start, draws=draws).float(), labels, label_smoothing=label_smoothing)
        return loss.detach(), torch.autograd.grad(loss, list(self.named_weights(start).values()))

    @abstractmethod
    def full_name(self, stage: int, name: str) -> str:
        """Return the name in the network's state of what stage `stage`, counted from 1, calls `name`."""

    def rows(self, stage: int, batch: int) -> int:
        """Return on how many rows a stage, counted from 1, runs in `rounded_cuts`."""
        return batch

    def named_weights(self, start: int = 0, stop: int | None = None) -> dict[str, nn.Parameter]:
        """Return the parameters of stages `start + 1` to `stop` by their names in the network's state."""
        return {
            self.full_name(number, name): parameter
            for number, stage in enumerate(self.stages[start:stop], start=start + 1)
            for name, parameter in stage.named_parameters()
        }

    def state(self, start: int = 0, stop: int | None = None) -> dict[str, Tensor]:
        """Return parameters and buffers of stages `start + 1` to `stop` by their names, without gradients."""
        return {
            self.full_name(number, name): tensor
            for number, stage in enumerate(self.stages[start:stop], start=start + 1)
            for name, tensor in stage.state_dict().items()
        }

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor], start: int = 0, stop: int | None = None) -> None:
        """Copy tensors named as in `state` into stages `start + 1` to `stop`, rounding to their type.

        Raises:
            ValueError: a tensor has another shape than the parameter.
        """
        for name, own in self.state(start, stop).items():
            if own.shape != state[name].shape:
                raise ValueError(f"{name}: {tuple(state[name].shape)} given, {tuple(own.shape)} needed")
            own.copy_(state[name])

    def freeze(self) -> Self:
        """Return the network without gradients, its stages as frozen ones run."""
        return self.requires_grad_(False)


class Architecture(ABC):
    """The description of a network, from which it is built. Implementations are frozen dataclasses of plain values.

    Attributes:
        name: as the user names it.
        store, crop: sides in pixels: images are stored at store x store, the network reads crop x crop.
    """

    name: str
    store: int
    crop: int

    @property
    @abstractmethod
    def stages(self) -> tuple[str, ...]:
        """The names of the stages in order, the classifier last."""

    @property
    @abstractmethod
    def random_stages(self) -> tuple[int, ...]:
        """The stages, counted from 1, that draw while they are trained: dropout, stochastic depth."""

    @property
    @abstractmethod
    def drawing_when_frozen(self) -> tuple[int, ...]:
        """Those of `random_stages` that draw in training even where they are frozen."""

    @property
    @abstractmethod
    def channel_mean(self) -> tuple[float, float, float] | None:
        """The mean of each channel in [0, 255], subtracted from the pixels; None: the task's mean image is."""

    @property
    @abstractmethod
    def has_batch_norm(self) -> bool:
        """True if a stage normalises by statistics of the batch."""

    @abstractmethod
    def input_form(self, device: str, dtype: torch.dtype) -> InputForm:
        """Return the form of image that the first stage reads on a device, "cpu" or "cuda"."""

    @abstractmethod
    def build(
        self, outputs: int, precision: str, device: torch.device, *, start: int = 0, stop: int | None = None
    ) -> StagedNetwork:
        """Return a network whose stages up to `stop` exist and whose stages behind `start` have memory on `device`.

        Values are not set. With `stop` 0 there is no stage at all.

        Args:
            outputs: width of the last layer.
            precision: "fp32" or "bf16", of the computations.
        """

    @abstractmethod
    def draw(
        self, outputs: int, init: str, key_of: KeyOf, start: int = 0, stop: int | None = None, *, first: float = 1.0
    ) -> dict[str, Tensor]:
        """Draw the initial state of stages `start + 1` to `stop`: parameters float32, and buffers.

        Args:
            init: see `inits`.
            first: factor on the weights of the first layer.
        """

    @property
    @abstractmethod
    def inits(self) -> tuple[str, ...]:
        """The kinds of initial values that there are."""

    @abstractmethod
    def names(self, start: int = 0, stop: int | None = None) -> tuple[str, ...]:
        """Return the names in the state of stages `start + 1` to `stop`, in order."""

    @abstractmethod
    def profile(self, outputs: int) -> Profile:
        """Return the sizes of the network."""

    @abstractmethod
    def step_bytes(self, outputs: int, batch: int, precision: str, start: int) -> int:
        """Return the most bytes of activations and gradients in a training step of the stages behind cut `start`."""

    @abstractmethod
    def facts(self) -> Mapping[str, object]:
        """Return what determines features beside weights and images, as plain values for JSON."""

    def normalised_by(self, task: str) -> str:
        """Return the name of the means that are subtracted: `task`, where it is its mean image, or "channels"."""
        return task if self.channel_mean is None else "channels"

    @property
    def cuts(self) -> tuple[int, ...]:
        """Return the cuts between stages: where a network can be copied up to."""
        return tuple(range(1, len(self.stages)))

    @property
    def margin(self) -> int:
        """Return the side of the store minus the side of the crop, in pixels."""
        return self.store - self.crop

    def cut_shape(self, n: int) -> tuple[int, ...]:
        """Return the shape of one image at cut n, below the logits."""
        return self.profile(2).cuts[n]

    def cut_values(self, n: int) -> int:
        """Return the number of values of one image at cut n."""
        return math.prod(self.cut_shape(n))

    def kept_cut(self, n: int) -> int:
        """Return the cut that a cell frozen up to cut `n` reads: the deepest that is a function of the view alone."""
        return min((n, *(stage - 1 for stage in self.drawing_when_frozen)))

    def weight_count(self, outputs: int, start: int = 0) -> int:
        """Return the number of parameters of the stages behind cut `start`."""
        return sum(self.profile(outputs).weights[start:])


def cut_name(source: str, cut: int) -> str:
    """Return the name of a cut of a source in a batch, e.g. "A5"."""
    return f"{source}{cut}"


@torch.no_grad()
def rounded_cuts(net: StagedNetwork, images: Tensor, cuts: Iterable[int], batch: int) -> dict[int, Tensor]:
    """Return cut -> (N, ...) bfloat16 from one forward pass: the features that frozen cells read in a study with views.

    The bits of an image's features must depend neither on its place in the batch nor on the other images. A convolution
    satisfies that for a fixed size of the batch, so stages always run on as many images as the recipe says, or on a
    multiple that the network asks for (docs/decisions/views.md). Nothing is rounded between the cuts.

    Args:
        net: the source network.
        images: (N, ...), in the form that stage 1 reads, at most `batch`; fewer are padded with zeros.
        cuts: numbers from 1.
        batch: images per pass.
    """
    wanted = set(cuts)
    n, x = len(images), images
    features = {}
    for stage in range(1, max(wanted) + 1):
        x = net(_pad_rows(x, net.rows(stage, batch)), start=stage - 1, stop=stage)
        if stage in wanted:
            features[stage] = x[:n].to(torch.bfloat16)
    return features


def _pad_rows(x: Tensor, rows: int) -> Tensor:
    """Return `x` with rows of zeros appended up to `rows`."""
    if len(x) >= rows:
        return x
    padded = torch.cat([x, x.new_zeros((rows - len(x), *x.shape[1:]))])
    return padded.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else padded
