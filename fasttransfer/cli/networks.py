"""`fasttransfer networks …`: lists the networks that can be named, and shows the stages, cuts and costs of one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import tyro
from rich.console import Console

from fasttransfer.cli.console import print_table, printer


@dataclass(frozen=True)
class NetworksList:
    """List the networks that --network can name.

    For example:

        fasttransfer networks list --containing resnet
    """

    containing: str = ""
    """Only those whose names contain this."""

    def run(self, console: Console) -> int:
        from fasttransfer.networks.find import list_networks

        for name in list_networks(self.containing):
            print(name)
        return 0


@dataclass(frozen=True)
class NetworksShow:
    """Show the stages of a network, the shape at each cut, and what its parameters and products cost.

    For example:

        fasttransfer networks show torchvision:resnet18 --size 64
    """

    network: Annotated[str, tyro.conf.Positional]
    """caffenet, caffenet-mini, torchvision:NAME or timm:NAME."""
    size: int | None = None
    """Side in pixels of the images that a network of a library reads, by default 224."""
    cuts: tuple[str, ...] | None = None
    """Stages to cut behind, by name; by default behind every block."""
    outputs: int = 1000
    """Number of classes."""

    def run(self, console: Console) -> int:
        from fasttransfer.networks.find import find_network

        network = find_network(self.network, size=self.size, cuts=self.cuts)
        profile = network.profile(self.outputs)
        total = sum(profile.macs)
        rows = []
        for n, name in enumerate(network.stages, start=1):
            shape = " x ".join(map(str, profile.cuts[n]))
            macs, weights = profile.macs[n - 1], profile.weights[n - 1]
            draws = "draws" if n in network.random_stages else ""
            rows.append(
                (
                    str(n),
                    name,
                    shape,
                    f"{weights:,}",
                    f"{macs / 1e6:,.1f} M",
                    f"{sum(profile.macs[:n]) / total:.0%}",
                    draws,
                )
            )
        print_table(console, ("cut", "stage", "leaves it", "weights", "multiply-adds", "so far", ""), rows)
        printer(console)(
            f"{network.name} reads {network.crop} x {network.crop} images out of {network.store} x {network.store}: "
            f"{sum(profile.weights):,} weights, {total / 1e6:,.0f} million multiply-adds per image forward; "
            f"cuts 1 to {len(network.cuts)}, stage {len(network.stages)} is the classifier"
        )
        return 0


@dataclass(frozen=True)
class Networks:
    """List the networks that can be studied, and show where one can be cut."""

    command: (
        Annotated[NetworksList, tyro.conf.subcommand("list")] | Annotated[NetworksShow, tyro.conf.subcommand("show")]
    ) = field(default_factory=NetworksList)

    def run(self, console: Console) -> int:
        return self.command.run(console)
