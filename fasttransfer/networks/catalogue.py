"""The image classifiers of torchvision and timm by name: `torchvision:resnet18`, `timm:vit_tiny_patch16_224`."""

from __future__ import annotations

import difflib
import fnmatch
import functools
import inspect
import typing
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from fasttransfer.core.errors import InputError

Channels = tuple[float, float, float]
IMAGENET_MEAN: Channels = (0.485, 0.456, 0.406)
IMAGENET_STD: Channels = (0.229, 0.224, 0.225)
LIBRARIES = ("torchvision", "timm")


@dataclass(frozen=True)
class Model:
    """A model of a library, not built yet. `library` is one of `LIBRARIES`."""

    library: str
    constructor: str

    def build(self, outputs: int, size: int) -> nn.Module:
        """Return the model with the library's initial values, drawn from torch's global generator.

        Args:
            outputs: number of classes.
            size: side of the images in pixels; where the constructor takes it, the model is built for it.

        Raises:
            Exception: of any type, from the library, where it has no such model for this size.
        """
        arguments = self._arguments()
        options: dict[str, Any] = {}
        if "image_size" in arguments:
            options["image_size"] = size
        if "input_size" in arguments:
            options["input_size"] = (size, size)
        if "img_size" in arguments:
            options["img_size"] = size
        if "aux_logits" in arguments:  # heads that only training has
            options |= {"aux_logits": False, "init_weights": False}
        return self._create(num_classes=outputs, **options)

    def normalisation(self, tag: str | None = None) -> tuple[Channels, Channels]:
        """Return mean and standard deviation of each channel, in [0, 1], that the library normalises images by.

        Args:
            tag: of published weights, which may have their own.
        """
        if self.library == "timm":
            import timm

            own = tag if tag in self._tags() else None
            published = timm.get_pretrained_cfg(f"{self.constructor}.{own}" if own else self.constructor)
            if published is not None:
                (r, g, b), (r_std, g_std, b_std) = published.mean, published.std
                return (r, g, b), (r_std, g_std, b_std)
        return IMAGENET_MEAN, IMAGENET_STD

    def download(self, tag: str, size: int) -> Mapping[str, Tensor]:
        """Return the state of the model with weights that its library publishes under a tag, such as IMAGENET1K_V1.

        Args:
            size: side of the images in pixels; the library resamples weights that depend on it where it can.

        Raises:
            InputError: there is no such tag, or the weights cannot be downloaded.
        """
        tags = self._tags()
        if tag not in tags:
            choice = f"choose {' or '.join(tags)}, or name a file" if tags else "name a file"
            raise InputError(f"{self.library} has no weights {tag!r} of {self.constructor}: {choice}")
        try:
            with torch.random.fork_rng(devices=[]):
                if self.library == "timm":
                    import timm

                    sized: dict[str, Any] = {"img_size": size} if "img_size" in self._arguments() else {}
                    return timm.create_model(f"{self.constructor}.{tag}", pretrained=True, **sized).state_dict()
                return torchvision.models.get_model(self.constructor, weights=tag).state_dict()
        except Exception as error:  # of the library's own ways to the network
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(
                f"the weights {tag} of {self.constructor} cannot be downloaded ({reason}): download them on another "
                "machine and name the file"
            ) from error

    def _tags(self) -> list[str]:
        if self.library == "timm":
            import timm

            names = timm.list_pretrained(f"{self.constructor}.*")
            return [name.partition(".")[2] for name in names]
        return [weights.name for weights in torchvision.models.get_model_weights(self.constructor)]

    @property
    def release(self) -> str:
        """The library and its version, e.g. "torchvision 0.29.2"."""
        return f"{self.library} {version(self.library)}"

    def _arguments(self) -> frozenset[str]:
        """Return the names of the constructor's arguments that matter here."""
        return _arguments(self)

    def _create(self, **options: Any) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on slow or changing initial values, deprecated names
            if self.library == "timm":
                import timm

                return timm.create_model(self.constructor, pretrained=False, **options)
            return torchvision.models.get_model(self.constructor, weights=None, **options)


@functools.cache
def _arguments(model: Model) -> frozenset[str]:
    if model.library == "torchvision":
        built = typing.get_type_hints(torchvision.models.get_model_builder(model.constructor))["return"]
        return frozenset(inspect.signature(built).parameters)
    with torch.device("meta"):
        built = type(model._create())
    # Subclasses of timm hand arguments on as **kwargs.
    names = (inspect.signature(ancestor).parameters for ancestor in built.__mro__ if issubclass(ancestor, nn.Module))
    return frozenset().union(*names) & {"img_size"}


def find_model(name: str) -> Model:
    """Return the model that a name such as `torchvision:resnet18` stands for.

    Raises:
        InputError: there is no such model, or its library is not installed.
    """
    library, _, constructor = name.partition(":")
    if library not in LIBRARIES or not constructor:
        raise InputError(
            f"there is no network {name!r}: write torchvision:NAME or timm:NAME, such as torchvision:resnet18 or "
            "timm:vit_tiny_patch16_224"
        )
    if library == "timm" and find_spec("timm") is None:
        raise InputError(f"{name} needs timm: pip install 'fasttransfer[timm]'")
    names = _constructors(library)
    if constructor not in names:
        longer = [each for each in names if each.startswith(constructor)]
        near = longer[:5] or difflib.get_close_matches(constructor, names, n=5, cutoff=0.5)
        hint = f"the nearest names are {', '.join(f'{library}:{n}' for n in near)}" if near else "check its spelling"
        raise InputError(f"{library} has no image classifier {constructor!r}: {hint}")
    return Model(library, constructor)


def list_names(pattern: str = "*") -> list[str]:
    """Return the names of the image classifiers that match a pattern such as `timm:vit_*`, of what is installed."""
    names = [f"{library}:{name}" for library in LIBRARIES for name in _constructors(library)]
    return fnmatch.filter(names, pattern)


def _constructors(library: str) -> list[str]:
    if library == "timm":
        if find_spec("timm") is None:
            return []
        import timm  # takes seconds, where most studies have a network of torchvision

        return timm.list_models()
    return torchvision.models.list_models(module=torchvision.models)
