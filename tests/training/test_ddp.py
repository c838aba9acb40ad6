"""Two processes train the network that one trains, but for rounding; what stops one of them costs nothing but time."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import forks
import pytest
import torch
from studies import network_tensors, quiet, said, tiny_choices
from waiting import PATIENCE

from fasttransfer import ops
from fasttransfer.core import randomness, tensor_files
from fasttransfer.core.errors import InputError
from fasttransfer.networks.architecture import StepDraws
from fasttransfer.pipelines.streams import Share, Stream
from fasttransfer.study import records
from fasttransfer.study.configuration import Choices
from fasttransfer.training import ddp, grid

STEPS = 40


def train(choices: Choices, out: Path, killed_at: int, environment: dict[str, str], told: Path) -> None:
    """Do what the command does, with checkpoints as often as possible; the second process may be killed at a step."""
    os.environ |= environment
    gradients, steps = ddp.DistributedTrainer._gradients, iter(range(10_000))

    def last_step(*arguments: Any) -> Any:
        if next(steps) == killed_at and environment["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return gradients(*arguments)

    ddp.DistributedTrainer._gradients = last_step  # type: ignore[method-assign]
    with told.open("w") as errors, redirect_stderr(errors):
        try:
            code = ddp.train_bases(choices, out, tasks=("A",), console=quiet(), checkpoint_seconds=0.0)
        except InputError as error:
            print(error, file=errors)
            code = 2
    sys.exit(code)


def train_in_two(choices: Choices, out: Path, killed_at: int = STEPS) -> list[tuple[int | None, str]]:
    """Train in two processes as torchrun starts them, without its own; return their exit codes and errors."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    started = []
    for rank in "01":
        told = out.with_name(f"{out.name}-{rank}.txt")
        work = (choices, out, killed_at, {**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank}, told)
        process = forks.context.Process(target=train, args=work, daemon=True)
        process.start()
        started.append((process, told))
    for process, _ in started:
        process.join(timeout=PATIENCE)
    return [(process.exitcode, told.read_text()) for process, told in started]


@pytest.mark.parametrize("batch", [8, 7])
def test_parts_make_up_the_batch(batch: int) -> None:
    """The parts have the images, crops and mirrors of one process in its order, each once."""
    whole = Stream(1, 2, 30, batch, 3)
    parts = [Stream(1, 2, 30, batch, 3, share=Share(rank, 3)) for rank in range(3)]
    for step in (0, 3, 4, 11):  # the fourth runs on into another epoch
        for one, others in zip(whole.views(step), zip(*(p.views(step) for p in parts), strict=True), strict=True):
            assert torch.equal(one, torch.cat(others))


def test_masks_are_those_of_the_whole_batch() -> None:
    key, at = randomness.key(0, "test"), torch.tensor(5)
    x = torch.randn(7, 10, dtype=torch.float64, requires_grad=True)
    whole = ops.dropout(x, key, at, 0.3)
    (gradient,) = torch.autograd.grad(whole, x, torch.ones_like(whole))
    for first, end in (Share(rank, 3).of(7) for rank in range(3)):
        part = x.detach()[first:end].requires_grad_()
        got = StepDraws({7: key}, at, 0.3, (first, 7 - end)).dropout(7, part)
        assert torch.equal(got, whole[first:end])
        assert torch.equal(torch.autograd.grad(got, part, torch.ones_like(got))[0], gradient[first:end])


def test_two_processes_train_what_one_trains(tmp_path: Path) -> None:
    """Two share uneven batches, once undisturbed and once killed on the way; grid goes on from there."""
    changes = {"layers": (2,), "treatments": ("transfer",), "targets": ("A",), "batch": 7, "steps": STEPS}
    choices = tiny_choices(tmp_path, **changes)
    recipe = Path(str(choices.recipe))
    recipe.write_text("label_smoothing = 0.1\n" + recipe.read_text())  # the loss is summed over processes
    one, two, killed = tmp_path / "one", tmp_path / "two", tmp_path / "killed"
    assert ddp.train_bases(choices, one, console=quiet()) == 0

    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "fasttransfer", "base", "--task", "A", "--data", choices.data, "--recipe", str(choices.recipe)]
    command += ["--layers", "2", "--treatments", "transfer", "--targets", "A", "--batch", "7", "--device", "cpu"]
    command += ["--steps", str(STEPS), "--out", str(two)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    (code, told), (other, _) = train_in_two(choices, killed, killed_at=25)
    assert (code, other) == (2, -signal.SIGKILL)
    assert "another process of this run has ended" in told
    assert list(killed.glob("checkpoints/base*")) and not list(killed.glob("weights/*"))
    assert [code for code, _ in train_in_two(choices, killed)] == [0, 0]

    path = Path("weights") / "baseA.s0.safetensors"
    (alone, about), (together, theirs), (resumed, again) = (tensor_files.load(run / path) for run in (one, two, killed))
    assert (about["processes"], theirs["processes"]) == (1, 2)
    assert all(torch.equal(together[name], resumed[name]) for name in together)
    assert theirs == again
    for name, value in alone.items():
        assert float((together[name] - value).norm()) < 1e-5 * float(value.norm()), name
    assert len(theirs["evaluations"]) == 3
    for ours, other_ones in zip(about["evaluations"], theirs["evaluations"], strict=True):
        assert other_ones["train_loss"] == pytest.approx(ours["train_loss"], rel=1e-5)
        assert other_ones["val_loss"] == pytest.approx(ours["val_loss"], rel=1e-5)
        assert other_ones["val_top1"] == ours["val_top1"]

    before = (two / path).read_bytes()
    console = quiet()
    assert grid.run(choices, two, console=console)
    assert "3 of 4 networks" in said(console)
    assert (two / path).read_bytes() == before
    assert {r.name: r.state for r in records.read_results(two).results} == dict.fromkeys(
        ("baseA", "baseB", "A8A+", "B2A"), "done"
    )
    # One process is grid's own, to the bit.
    ours, theirs = (network_tensors(run)["baseB.s0.safetensors"] for run in (one, two))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_batches_that_cannot_be_shared_and_missing_gpus_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_a = tiny_choices(tmp_path, targets=("A",), treatments=("selffer",))
    with pytest.raises(InputError, match="--task B: the study trains no base on it"):
        ddp.train_bases(only_a, tmp_path / "run", tasks=("B",), console=quiet())
    assert not (tmp_path / "run").exists()
    for name, value in (("WORLD_SIZE", "4"), ("LOCAL_WORLD_SIZE", "4"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(
        InputError, match="4 processes here, each needs a GPU and there are 2: give it --nproc-per-node 2"
    ):
        ddp.train_bases(tiny_choices(tmp_path, device="cuda"), tmp_path / "run", console=quiet())
