"""Any image classifier of torchvision or timm as an architecture, cut into stages automatically."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses import FakeTensorMode
from torch.overrides import TorchFunctionMode

from fasttransfer.core.errors import InputError
from fasttransfer.networks import traced_sizes
from fasttransfer.networks.architecture import Architecture, InputForm, KeyOf, Profile
from fasttransfer.networks.catalogue import Model, find_model
from fasttransfer.networks.cutting import Trace, TraceError, choose_segments, first_sentence, split, trace
from fasttransfer.networks.random_modules import random_modules, replace_random_modules
from fasttransfer.networks.traced_check import check_stages
from fasttransfer.networks.traced_network import TracedNetwork, TracedStage

_OUTPUTS = 2  # where the number of classes does not matter
_SIZES = (32, 64, 96, 128, 160, 192, 224, 240, 256, 288, 299, 320, 384, 448, 512)  # tried where one does not work


@dataclass(frozen=True)
class TracedArchitecture(Architecture):
    """A model of a library, cut into stages. `trace_network` makes one.

    Attributes:
        name: of the model, e.g. torchvision:resnet18.
        stage_names: in order, the classifier last.
        mean, std: of the pixels of each channel, in [0, 1].
    """

    name: str
    store: int
    crop: int
    stage_names: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        for field in ("stage_names", "mean", "std"):  # lists, where they were read from a file
            object.__setattr__(self, field, tuple(getattr(self, field)))

    @property
    def stages(self) -> tuple[str, ...]:
        return self.stage_names

    @property
    def random_stages(self) -> tuple[int, ...]:
        bodies = _template(self, _OUTPUTS).bodies
        return tuple(stage for stage, body in enumerate(bodies, start=1) if random_modules(body))

    @property
    def drawing_when_frozen(self) -> tuple[int, ...]:
        return ()

    @property
    def channel_mean(self) -> tuple[float, float, float]:
        red, green, blue = (255 * value for value in self.mean)
        return red, green, blue

    @property
    def has_batch_norm(self) -> bool:
        bodies = _template(self, _OUTPUTS).bodies
        return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for body in bodies for module in body.modules())

    @property
    def inits(self) -> tuple[str, ...]:
        return ("own",)

    def input_form(self, device: str, dtype: torch.dtype) -> InputForm:
        return InputForm(block=1, side=self.crop, dtype=dtype)

    def build(
        self, outputs: int, precision: str, device: torch.device, *, start: int = 0, stop: int | None = None
    ) -> TracedNetwork:
        template = _template(self, outputs)
        stages: list[nn.Module] = []
        for number, body in enumerate(template.bodies[:stop], start=1):
            if number <= start:
                stages.append(nn.Identity())
                continue
            stages.append(
                TracedStage(
                    body,
                    stage=number,
                    precision=precision,
                    device=device,
                    persistent=template.states[number - 1],
                    scale=_scale(self) if number == 1 else None,
                    is_last=number == len(self.stage_names),
                )
            )
        vectors = (number for number, shape in enumerate(template.cuts, start=2) if len(shape) == 1)
        return TracedNetwork(stages, frozenset(vectors))

    def draw(
        self, outputs: int, init: str, key_of: KeyOf, start: int = 0, stop: int | None = None, *, first: float = 1.0
    ) -> dict[str, Tensor]:
        assert init in self.inits and first == 1.0, "a library's own initial values come as they are"
        state = _initial_state(self.name, self.crop, outputs, key_of(1) & (2**63 - 1))
        return {name: state[name].clone() for name in self.names(start, stop)}

    def names(self, start: int = 0, stop: int | None = None) -> tuple[str, ...]:
        template = _template(self, _OUTPUTS)
        return tuple(name for state in template.states[start:stop] for name in state)

    def profile(self, outputs: int) -> Profile:
        return _profile(self, outputs)

    def step_bytes(self, outputs: int, batch: int, precision: str, start: int) -> int:
        return traced_sizes.step_bytes(_stage_bytes(self, outputs, precision)[start:], batch)

    def facts(self) -> Mapping[str, object]:
        return {
            "network": self.name,
            "crop": self.crop,
            "stages": list(self.stage_names),
            "mean": list(self.mean),
            "std": list(self.std),
            "library": find_model(self.name).release,
        }


def trace_network(
    name: str,
    *,
    size: int = 224,
    cuts: Sequence[str] | None = None,
    weights: str | None = None,
) -> TracedArchitecture:
    """Cut a model into stages and check that they compute what the model does.

    Args:
        name: torchvision:NAME or timm:NAME, see `catalogue.list_names`.
        size: side of the images in pixels.
        cuts: modules or stages behind which to cut, see `cutting.choose_segments`; None: wherever it is sensible.
        weights: tag of published weights; they, else the library, say how images are normalised.

    Raises:
        InputError: there is no such model or cut, the model does not take images of this size, or cannot be cut.
    """
    segments = _trace(name, size, _OUTPUTS).segments
    if cuts is not None:
        segments = choose_segments(segments, cuts)
    if len(segments) < 2:
        raise InputError(f"{name} is not cut anywhere: choose another model or name other cuts")
    mean, std = find_model(name).normalisation(weights)
    architecture = TracedArchitecture(
        name=name,
        store=8 * round(size * 8 / 7 / 8),
        crop=size,
        stage_names=tuple(segment.name for segment in segments),
        mean=mean,
        std=std,
    )
    _check(architecture)
    return architecture


def _scale(architecture: TracedArchitecture) -> Tensor:
    return 1.0 / torch.tensor(architecture.std).view(3, 1, 1)


@functools.lru_cache(maxsize=8)
def _trace(name: str, size: int, outputs: int) -> Trace:
    """Trace a model once in this process. Its buffers are set, its parameters have no memory.

    Raises:
        InputError: see `trace_network`.
    """
    model = find_model(name)
    try:
        built = _build_without_drawing(model, outputs, size)
        replace_random_modules(built)
        result = trace(built, size)
    except TraceError as error:
        raise InputError(f"{name} cannot be cut into stages: {error}") from error
    except InputError as error:
        raise InputError(f"{name} cannot be trained here: {error}") from error
    except Exception as error:
        reason = first_sentence(error)
        if _fits(model, outputs, size):
            raise InputError(f"{name} cannot be cut into stages: its blocks do not run alone ({reason})") from error
        for other in sorted(_SIZES, key=lambda other: (other < size, abs(other - size))):
            if _fits(model, outputs, other):
                hint = f"images of {other} x {other} work"
                raise InputError(f"{name} does not take images of {size} x {size} pixels ({reason}): {hint}") from error
        raise InputError(f"{name} cannot be built as an image classifier here: {reason}") from error
    shape = tuple(result.live[result.segments[-1].end].meta["value"].shape[1:])
    if shape != (outputs,):
        raise InputError(f"{name} is no image classifier: for {outputs} classes it returns {shape} values per image")
    _drop_memory(built)
    return result


def _fits(model: Model, outputs: int, size: int) -> bool:
    """Return whether a model takes images of a size."""
    try:
        with torch.device("meta"):
            built = model.build(outputs, size)
            built.eval()(torch.empty(2, 3, size, size))
    except NotImplementedError:  # the constructor computes with tensors
        with contextlib.suppress(Exception):
            built = _build_without_drawing(model, outputs, size).to("meta")
            built.eval()(torch.empty(2, 3, size, size, device="meta"))
            return True
        return False
    except Exception:
        return False
    return True


class _WithoutDrawing(TorchFunctionMode):
    """A mode in which a library does not set the initial values of parameters, which takes seconds."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        changed = args[0] if args else kwargs.get("tensor")  # functions of torch.nn.init pass it by name
        if isinstance(changed, nn.Parameter) and name.endswith("_") and not name.endswith(("__", "requires_grad_")):
            return changed
        return func(*args, **kwargs)


def _build_without_drawing(model: Model, outputs: int, size: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]), _WithoutDrawing():
        return model.build(outputs, size)


def _drop_memory(model: nn.Module) -> None:
    without: dict[nn.Parameter, nn.Parameter] = {}  # two modules may share one
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                meta = nn.Parameter(parameter.to("meta"), parameter.requires_grad)
                module._parameters[name] = without.setdefault(parameter, meta)


@dataclass(frozen=True)
class _Template:
    """The stages of an architecture with so many outputs.

    Attributes:
        bodies: modules whose parameters have no memory.
        cuts: shapes of what leaves them, for one image.
        states: of each stage, by the names in the model's state.
    """

    bodies: tuple[fx.GraphModule, ...]
    cuts: tuple[tuple[int, ...], ...]
    states: tuple[Mapping[str, Tensor], ...]


@functools.lru_cache(maxsize=8)
def _template(architecture: TracedArchitecture, outputs: int) -> _Template:
    network = _trace(architecture.name, architecture.crop, outputs)
    try:
        segments = choose_segments(network.segments, architecture.stage_names[:-1])
        is_same = tuple(segment.name for segment in segments) == architecture.stage_names
    except InputError:
        is_same = False
    if not is_same:
        raise InputError(
            f"{find_model(architecture.name).release} cuts {architecture.name} into other stages than those on record: "
            "install the version that the study began with"
        )
    bodies = split(network, segments)
    whole = network.model.state_dict()
    # A buffer that the top of the forward pass reads is in a stage's state even where the model does not save it.
    states = tuple({name: tensor for name, tensor in body.state_dict().items() if name in whole} for body in bodies)
    unused = whole.keys() - set().union(*states)
    if unused:
        raise InputError(
            f"{architecture.name} cannot be cut into stages: its forward pass has no use for {min(unused)}"
        )
    return _Template(bodies, tuple(map(network.shape, segments)), states)


@functools.lru_cache(maxsize=2)
def _initial_state(name: str, size: int, outputs: int, seed: int) -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return find_model(name).build(outputs, size).state_dict()


@functools.lru_cache(maxsize=8)
def _profile(architecture: TracedArchitecture, outputs: int) -> Profile:
    template = _template(architecture, outputs)
    cuts = ((3, architecture.crop, architecture.crop), *template.cuts)
    return Profile(
        cuts=cuts,
        macs=traced_sizes.multiply_adds(architecture.build(outputs, "fp32", torch.device("meta")), cuts),
        weights=tuple(sum(p.numel() for p in body.parameters()) for body in template.bodies),
        values=tuple(sum(tensor.numel() for tensor in state.values()) for state in template.states),
    )


@functools.lru_cache(maxsize=8)
def _stage_bytes(architecture: TracedArchitecture, outputs: int, precision: str) -> tuple[traced_sizes.StageBytes, ...]:
    cuts = _profile(architecture, outputs).cuts
    # Slower than the meta device, which has neither autocast nor the attention that keeps no matrix.
    with FakeTensorMode(allow_non_fake_inputs=True):
        return traced_sizes.stage_bytes(architecture.build(outputs, precision, torch.device("cpu")), cuts)


@functools.cache
def _check(architecture: TracedArchitecture) -> None:
    model = _build_without_drawing(find_model(architecture.name), _OUTPUTS, architecture.crop)
    replace_random_modules(model)
    check_stages(architecture.name, model, _template(architecture, _OUTPUTS).bodies, architecture.crop)
