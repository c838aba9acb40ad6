"""Find a network by its name, or by the table that describes it in a TOML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from fasttransfer.core.errors import InputError
from fasttransfer.core.toml import build_from_table
from fasttransfer.networks.architecture import Architecture
from fasttransfer.networks.caffenet import CAFFENET, CAFFENET_MINI, CaffeNetArchitecture

SMALL, LARGE = 64, 224
"""Default sides of the images that networks of any size read."""

_OWN = {network.name: network for network in (CAFFENET, CAFFENET_MINI)}


def own_networks() -> tuple[str, ...]:
    """Return the names of the networks in this package."""
    return tuple(_OWN)


def list_networks(containing: str = "") -> list[str]:
    """Return the names of all networks whose name contains a text."""
    from fasttransfer.networks.catalogue import list_names  # here, because it imports the libraries

    return [name for name in (*_OWN, *list_names()) if containing in name]


def find_network(
    name: str,
    *,
    size: int | None = None,
    cuts: Sequence[str] | None = None,
    weights: str | None = None,
    is_small: bool = False,
) -> Architecture:
    """Return the network called `name`: one of this package, or torchvision:NAME or timm:NAME.

    Args:
        size: side of the images that it reads; by default 64 for small images, else 224.
        cuts: names of the stages to cut behind; by default all.
        weights: tag of published weights, whose normalisation is the network's.
        is_small: whether the images are small.

    Raises:
        InputError: there is no such network, or it cannot be cut so, or not for images of this size.
    """
    if name in _OWN:
        network = _OWN[name]
        if size not in (None, network.crop):
            raise InputError(f"--size {size}: {name} reads images of {network.crop} pixels: drop --size")
        if cuts is not None:
            raise InputError(f"--cuts: the stages of {name} are its layers: choose among them with --layers")
        return network
    if ":" not in name:
        known = [each for each in list_networks() if each.partition(":")[2] == name] or [*_OWN]
        raise InputError(
            f"network {name!r} is unknown: choose {' or '.join(known)}; fasttransfer networks lists all, as "
            "torchvision:resnet18 and timm:vit_tiny_patch16_224"
        )
    from fasttransfer.networks.traced import trace_network  # here, because it imports the libraries

    return trace_network(name, size=size or (SMALL if is_small else LARGE), cuts=cuts, weights=weights)


def parse_network(table: object, where: str) -> Architecture:
    """Return the network that a name, or the fields in a table of a TOML file, describe; `where` is for errors.

    Raises:
        InputError: there is no such network.
    """
    if isinstance(table, str):
        return find_network(table)
    if not isinstance(table, Mapping):
        raise InputError(f"{where}: network {table!r} is unknown: choose one of {', '.join(_OWN)}, or give a table")
    kind: type[Any] = CaffeNetArchitecture
    if not table.keys() <= {field.name for field in fields(CaffeNetArchitecture)}:
        from fasttransfer.networks.traced import TracedArchitecture  # here, because it imports the libraries

        kind = TracedArchitecture if "stage_names" in table else kind
    network: Architecture = build_from_table(kind, table, f"{where}: network")
    return network


def describe_network(network: Architecture) -> dict[str, Any]:
    """Return the table that `parse_network` reads."""
    return asdict(network)  # type: ignore[call-overload]  # every implementation is a dataclass
