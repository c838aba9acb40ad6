"""Any image classifier of torchvision or timm as an architecture, cut into stages automatically."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from fasttransfer.core.errors import InputError
from fasttransfer.networks import traced_sizes
from fasttransfer.networks.architecture import Architecture, InputForm, KeyOf, Profile, StepDraws
from fasttransfer.networks.catalogue import Model, find_model
from fasttransfer.networks.cutting import Segment, Trace, TraceError, choose_segments, split, trace
from fasttransfer.networks.random_modules import RandomModule, StageDraws, random_modules, replace_random_modules
from fasttransfer.networks.traced_network import TracedNetwork, TracedStage

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
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
                    persistent=template.state,
                    scale=_scale(self) if number == 1 else None,
                    is_last=number == len(self.stage_names),
                )
            )
        return TracedNetwork(stages)

    def draw(
        self, outputs: int, init: str, key_of: KeyOf, start: int = 0, stop: int | None = None, *, first: float = 1.0
    ) -> dict[str, Tensor]:
        assert init in self.inits and first == 1.0, "a library's own initial values come as they are"
        state = _initial_state(self.name, self.crop, outputs, key_of(1) & (2**63 - 1))
        return {name: state[name].clone() for name in self.names(start, stop)}

    def names(self, start: int = 0, stop: int | None = None) -> tuple[str, ...]:
        template = _template(self, _OUTPUTS)
        return tuple(
            name for body in template.bodies[start:stop] for name in body.state_dict() if name in template.state
        )

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
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> TracedArchitecture:
    """Cut a model into stages and check that they compute what the model does.

    Args:
        name: torchvision:NAME or timm:NAME, see `catalogue.list_names`.
        size: side of the images in pixels.
        cuts: modules or stages behind which to cut, see `cutting.choose_segments`; None: wherever it is sensible.
        mean, std: of the pixels of each channel, in [0, 1].

    Raises:
        InputError: there is no such model or cut, the model does not take images of this size, or cannot be cut.
    """
    segments = _trace(name, size, _OUTPUTS).segments
    if cuts is not None:
        segments = choose_segments(segments, cuts)
    red, green, blue = mean
    architecture = TracedArchitecture(
        name=name,
        store=8 * round(size * 8 / 7 / 8),
        crop=size,
        stage_names=tuple(segment.name for segment in segments),
        mean=(red, green, blue),
        std=(std[0], std[1], std[2]),
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
        found = trace(built, size)
    except TraceError as error:
        raise InputError(f"{name} cannot be cut into stages: {error}") from error
    except InputError as error:
        raise InputError(f"{name} cannot be trained here: {error}") from error
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".:")
        for other in sorted(_SIZES, key=lambda other: (other < size, abs(other - size))):
            if _fits(model, outputs, other):
                hint = f"images of {other} x {other} work"
                raise InputError(f"{name} does not take images of {size} x {size} pixels ({reason}): {hint}") from error
        raise InputError(f"{name} cannot be built as an image classifier here: {reason}") from error
    shape = tuple(found.live[found.segments[-1].end].meta["value"].shape[1:])
    if shape != (outputs,):
        raise InputError(f"{name} is no image classifier: for {outputs} classes it returns {shape} values per image")
    _drop_memory(built)
    return found


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
    """Leaves parameters as they are allocated, where a library would set their initial values, which takes seconds."""

    _SETTERS = frozenset({"normal_", "uniform_", "erfinv_", "mul_", "div_", "add_", "sub_", "clamp_", "fill_", "zero_"})

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in self._SETTERS and args and isinstance(args[0], nn.Parameter):
            return args[0]
        return func(*args, **(kwargs or {}))


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
    """The stages of an architecture with so many outputs. `state`: the names in the model's state."""

    bodies: tuple[fx.GraphModule, ...]
    segments: tuple[Segment, ...]
    cuts: tuple[tuple[int, ...], ...]
    state: frozenset[str]


@functools.lru_cache(maxsize=8)
def _template(architecture: TracedArchitecture, outputs: int) -> _Template:
    found = _trace(architecture.name, architecture.crop, outputs)
    try:
        segments = choose_segments(found.segments, architecture.stage_names[:-1])
        is_same = tuple(segment.name for segment in segments) == architecture.stage_names
    except InputError:
        is_same = False
    if not is_same:
        raise InputError(
            f"{find_model(architecture.name).release} cuts {architecture.name} into other stages than those on record: "
            "install the version that the study began with"
        )
    bodies = split(found, segments)
    state = frozenset(found.model.state_dict())
    rest = state.difference(*(body.state_dict() for body in bodies))
    if rest:
        raise InputError(f"{architecture.name} cannot be cut into stages: its forward pass does not use {min(rest)}")
    return _Template(bodies, segments, tuple(map(found.shape, segments)), state)


@functools.lru_cache(maxsize=2)
def _initial_state(name: str, size: int, outputs: int, seed: int) -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return find_model(name).build(outputs, size).state_dict()


@functools.lru_cache(maxsize=8)
def _profile(architecture: TracedArchitecture, outputs: int) -> Profile:
    template = _template(architecture, outputs)
    states = [
        [body.state_dict()[name] for name in body.state_dict() if name in template.state] for body in template.bodies
    ]
    cuts = ((3, architecture.crop, architecture.crop), *template.cuts)
    return Profile(
        cuts=cuts,
        macs=traced_sizes.multiply_adds(lambda: architecture.build(outputs, "fp32", torch.device("cpu")), cuts),
        weights=tuple(sum(p.numel() for p in body.parameters()) for body in template.bodies),
        values=tuple(sum(tensor.numel() for tensor in state) for state in states),
    )


@functools.lru_cache(maxsize=8)
def _stage_bytes(architecture: TracedArchitecture, outputs: int, precision: str) -> tuple[traced_sizes.StageBytes, ...]:
    cuts = _profile(architecture, outputs).cuts
    return traced_sizes.stage_bytes(lambda: architecture.build(outputs, precision, torch.device("cpu")), cuts)


@functools.cache
def _check(architecture: TracedArchitecture) -> None:
    """Compare the stages with the model itself, to the bit, in both modes, on two images.

    Raises:
        InputError: they differ, or the model draws at random by itself.
    """
    name, side = architecture.name, architecture.crop
    generator = torch.Generator().manual_seed(0)
    model = _build_without_drawing(find_model(name), _OUTPUTS, side)
    values = torch.randn(2**16 + 1, generator=generator)
    with torch.no_grad():
        for parameter in model.parameters():  # a library sets some to zero, which would hide a branch
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 1
            repeated = (values * fan_in**-0.5).repeat(-(-parameter.numel() // len(values)))
            parameter.copy_(repeated[: parameter.numel()].view_as(parameter))
    replace_random_modules(model)
    model.to(memory_format=torch.channels_last)
    network = architecture.build(_OUTPUTS, "fp32", torch.device("cpu"))
    network.load(model.state_dict())
    images = torch.randn(2, 3, side, side, generator=generator).contiguous(memory_format=torch.channels_last)
    draws = StepDraws({n: n for n in architecture.random_stages}, torch.zeros((), dtype=torch.int64), 0.5)
    for step in (None, draws):
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            at_first = torch.get_rng_state()
            expected = _run_whole(model, architecture, images * _scale(architecture), step)
            if not torch.equal(torch.get_rng_state(), at_first):
                raise InputError(
                    f"{name} draws at random within a module in training, which cannot be repeated: use another"
                )
            found = network(images, draws=step)
        buffers, own = dict(model.named_buffers()), network.state()
        pairs = [(expected, found), *((buffers[key], own[key]) for key in buffers.keys() & own.keys())]
        if not all(torch.allclose(a.float(), b.float(), rtol=0, atol=0, equal_nan=True) for a, b in pairs):
            raise InputError(f"{name} computes something else in stages than as a whole: use another")


def _run_whole(model: nn.Module, architecture: TracedArchitecture, x: Tensor, draws: StepDraws | None) -> Tensor:
    """Run the model's own forward pass with the random modules of its stages."""
    for stage, body in enumerate(_template(architecture, _OUTPUTS).bodies, start=1):
        shared = StageDraws(stage)
        shared.start(draws)
        for path, module in body.named_modules():
            if isinstance(module, RandomModule):
                own = model.get_submodule(path)
                assert isinstance(own, RandomModule)
                own.draws = shared
    return model.train(draws is not None)(x)
