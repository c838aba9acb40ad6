"""Batch normalisation of a batch that two processes share gives what one process computes."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from fasttransfer.training.synced_batch_norm import SyncedBatchNorm

PARTS = (5, 3)  # images of each process


def make_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 3), nn.BatchNorm2d(4))


def make_images() -> Tensor:
    return torch.randn(sum(PARTS), 3, 9, 9, generator=torch.Generator().manual_seed(1))


def train(net: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Return the output, the gradients of a loss that sums over images, and the statistics."""
    output = net(images)
    output.pow(3).sum().backward()
    gradients = {name: parameter.grad for name, parameter in net.named_parameters() if parameter.grad is not None}
    return {"output": output.detach(), **gradients, **dict(net.named_buffers())}


def take_part(rank: int, port: int, folder: Path) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=len(PARTS))
    with SyncedBatchNorm():
        found = train(make_network(), make_images().split(PARTS)[rank])
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_normalise_as_one_does(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(take_part, (port, tmp_path), nprocs=len(PARTS))
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(len(PARTS))]
    whole = train(make_network(), make_images())
    torch.testing.assert_close(torch.cat([part["output"] for part in parts]), whole["output"], rtol=1e-4, atol=1e-5)
    for name in whole.keys() - {"output"}:
        if "running" in name:
            for part in parts:
                torch.testing.assert_close(part[name], whole[name])
        elif "num_batches" not in name:
            # The bias of a convolution before a normalisation has no effect: its gradient is rounding alone.
            close = {"rtol": 1e-3, "atol": 1e-2} if name.endswith("bias") else {"rtol": 1e-4, "atol": 1e-3}
            torch.testing.assert_close(parts[0][name] + parts[1][name], whole[name], **close)
    alone = train(make_network(), make_images()[: PARTS[0]])
    assert not torch.allclose(alone["1.running_mean"], whole["1.running_mean"], rtol=1e-3)


def test_evaluation_and_other_functions_are_left_alone() -> None:
    net, images = make_network().eval(), make_images()
    expected = net(images)
    with SyncedBatchNorm():  # outside of a process group, which nothing asks for
        assert torch.equal(net(images), expected)


def test_training_needs_a_process_group() -> None:
    with SyncedBatchNorm(), pytest.raises(ValueError, match="process group"):
        make_network().train()(make_images())
