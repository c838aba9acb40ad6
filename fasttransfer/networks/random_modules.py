"""Dropout and stochastic depth whose masks are functions of a key and the step, in place of a library's modules."""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from fasttransfer.core.errors import InputError
from fasttransfer.networks.architecture import StepDraws


class StageDraws:
    """The draws of one pass through one stage, which all random modules of the stage share.

    Attributes:
        stage: counted from 1.
    """

    def __init__(self, stage: int) -> None:
        self.stage = stage
        self._draws: StepDraws | None = None
        self._count = 0

    def start(self, draws: StepDraws | None) -> None:
        """Begin a pass: masks are numbered from 0 in the order in which they are drawn. None: nothing is drawn."""
        self._draws, self._count = draws, 0

    def dropout(self, x: Tensor, probability: float, shared_dims: int = 0) -> Tensor:
        """Return `x`, (N, ...), with the stage's next mask applied, one draw for all values along the last dimensions.

        Args:
            shared_dims: number of these dimensions.
        """
        if self._draws is None:
            return x
        index, self._count = self._count, self._count + 1
        if not shared_dims:
            return self._draws.dropout(self.stage, x, probability, index)
        ones = x.new_ones((*x.shape[:-shared_dims], *[1] * shared_dims))
        return x * self._draws.dropout(self.stage, ones, probability, index)


class RandomModule(nn.Module):
    """A dropout, or stochastic depth: sets values to zero and scales the others. `draws` is set with its stage.

    Args:
        p: the probability.
        shared_dims: number of last dimensions whose values share one draw; None: all but the batch's.
    """

    def __init__(self, p: float, shared_dims: int | None = 0) -> None:
        super().__init__()
        self.p = p
        self.shared_dims = shared_dims
        self.draws = StageDraws(0)

    def forward(self, x: Tensor) -> Tensor:
        return self.draws.dropout(x, self.p, x.dim() - 1 if self.shared_dims is None else self.shared_dims)


_SHARED_DIMS: dict[type[nn.Module], int] = {nn.Dropout: 0, nn.Dropout1d: 1, nn.Dropout2d: 2, nn.Dropout3d: 3}


def replace_random_modules(model: nn.Module) -> None:
    """Replace the dropouts and stochastic depths of a model that draw, in place.

    Modules with probability 0 stay: they do nothing, and other modules may read their probability. Other kinds stay
    too; whoever runs the model in training finds out that it draws from torch's generator.

    Raises:
        InputError: stochastic depth drops the branch for a whole batch at once.
    """
    made: dict[nn.Module, RandomModule] = {}  # a module can stand at several places
    for path, module in list(model.named_modules(remove_duplicate=False)):
        new = made.get(module) or _replacement(path, module)
        if new is not None:
            made[module] = new
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, new)


def _replacement(path: str, module: nn.Module) -> RandomModule | None:
    kind = type(module)
    p = getattr(module, "p", None) or getattr(module, "drop_prob", None)
    if not p:
        return None
    if kind in _SHARED_DIMS:
        return RandomModule(p, _SHARED_DIMS[kind])
    if isinstance(module, StochasticDepth):
        if module.mode != "row":
            raise InputError(
                f"{path} drops a branch for the whole batch at once, which depends on how the batch is split: choose a "
                "model with stochastic depth by image"
            )
        return RandomModule(p, None)
    # By name: importing timm takes seconds.
    if kind.__name__ == "DropPath" and kind.__module__.startswith("timm.") and getattr(module, "scale_by_keep", False):
        return RandomModule(p, None)
    return None


def random_modules(module: nn.Module) -> list[RandomModule]:
    """Return the modules that `replace_random_modules` put into `module`."""
    return [part for part in module.modules() if isinstance(part, RandomModule)]
