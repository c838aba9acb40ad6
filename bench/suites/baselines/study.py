"""The study as one would write it in PyTorch without this project: from JPEG files, one network after another.

    python -m fasttransfer.bench.baselines.study tune JOB RESULT
    python -m fasttransfer.bench.baselines.study train JOB RESULT

JOB is the JSON form of `PlainJob`: which files, which networks, which recipe. `train` writes how each network scored,
`tune` how fast a step is under each of the usual settings. Written as somebody writes it who knows PyTorch well: what
is frozen runs without gradients, workers decode while the network trains. What he would not know is left out.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler

from fasttransfer.bench.baselines.caffenet import CUTS, caffenet, layers
from fasttransfer.networks.geometry import Geometry

# Standard deviation and bias of Caffe's initial values, layer by layer.
_CAFFE_INIT = ((0.01, 0), (0.01, 1), (0.01, 0), (0.01, 1), (0.01, 1), (0.005, 1), (0.005, 1), (0.01, 0))
_WARM_UP, _TIMED = 6, 30  # steps of a setting that is tried


@dataclass(frozen=True)
class Task:
    """Images of one task: pairs of file and label; `steps` and `checks` say how long it is trained on."""

    train: list[tuple[str, int]]
    val: list[tuple[str, int]]
    outputs: int
    steps: int
    checks: list[int]


@dataclass(frozen=True)
class Network:
    """One network: its first `n` layers come from the base of task `source`, or are random ("R"); None for a base.

    `mean` is the task whose mean image is subtracted.
    """

    name: str
    target: str
    source: str | None
    n: int
    frozen: bool
    mean: str


@dataclass(frozen=True)
class Settings:
    """The usual settings to try for a fast training loop."""

    threads: int
    workers: int
    channels_last: bool


@dataclass(frozen=True)
class PlainJob:
    """The whole job; `recipe` has the values of `Recipe` without its network."""

    tasks: Mapping[str, Task]
    networks: Sequence[Network]
    geometry: Geometry
    recipe: Mapping[str, Any]
    seed: int
    device: str
    settings: Settings | None = None

    @staticmethod
    def read(path: Path) -> PlainJob:
        """From its JSON form."""
        given = json.loads(path.read_text())
        return PlainJob(
            {name: Task(**task) for name, task in given["tasks"].items()},
            [Network(**network) for network in given["networks"]],
            Geometry(**given["geometry"]),
            given["recipe"],
            given["seed"],
            given["device"],
            Settings(**given["settings"]) if given["settings"] else None,
        )


def read(file: str, side: int) -> NDArray[np.uint8]:
    """An image, (side, side, 3); one of another size is stretched."""
    with Image.open(file) as opened:
        image = opened.convert("RGB")
    if image.size != (side, side):
        image = image.resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(image)


def mean_images(job: PlainJob) -> dict[str, NDArray[np.float32]]:
    """Task -> the mean of its training images, (side, side, 3)."""
    side, found = job.geometry.store, {}
    for name, task in job.tasks.items():
        total = np.zeros((side, side, 3))
        for file, _ in task.train:
            total += read(file, side)
        found[name] = (total / len(task.train)).astype(np.float32)
    return found


class PlainViews(Dataset[tuple[Tensor, Any]]):
    """Images less a mean: random crops, mirrored half of the time, in training, else the middle."""

    def __init__(
        self, files: Sequence[tuple[str, int]], mean: NDArray[np.float32], crop: int, scale: float, *, training: bool
    ) -> None:
        self._files, self._mean, self._crop, self._scale, self._training = files, mean, crop, scale, training

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        file, label = self._files[index]
        side = len(self._mean)
        margin = side - self._crop
        top, left = torch.randint(margin + 1, (2,)).tolist() if self._training else (margin // 2, margin // 2)
        window = np.s_[top : top + self._crop, left : left + self._crop]
        view = (read(file, side)[window] - self._mean[window]) * np.float32(self._scale)
        if self._training and torch.rand(()) < 0.5:
            view = view[:, ::-1]
        return torch.from_numpy(np.ascontiguousarray(view)).permute(2, 0, 1), label


class PlainStudy:
    """The state that the networks of a job share: mean images, and the bases once they are trained."""

    def __init__(self, job: PlainJob, settings: Settings, means: Mapping[str, NDArray[np.float32]]) -> None:
        self.job, self.settings, self.means = job, settings, means
        self.device = torch.device(job.device)
        self.format = torch.channels_last if settings.channels_last else torch.contiguous_format
        self.bases: dict[str, nn.Sequential] = {}
        torch.set_num_threads(settings.threads)

    def build(self, network: Network) -> nn.Sequential:
        """A network with fresh values, but for what it copies."""
        # Copies start from other values than bases: a copy of a task's own layers would else begin where its base did.
        torch.manual_seed(2 * self.job.seed + (network.source is not None))
        outputs = self.job.tasks[network.target].outputs
        net = caffenet(self.job.geometry, outputs, dropout=self.job.recipe["dropout"])
        for number, layer in enumerate(layers(net)):
            deviation, bias = _CAFFE_INIT[number]
            if self.job.recipe["init"] == "he":
                bias = 0
                if number < 7:
                    deviation = math.sqrt(2 / math.prod(layer.weight.shape[1:]))
            if number == 0 and network.source is None:
                deviation *= self.job.recipe["first_init"]
            nn.init.normal_(layer.weight, std=deviation)
            assert layer.bias is not None
            nn.init.constant_(layer.bias, bias)
        if network.source in self.bases:
            copied = CUTS[network.n]
            net[:copied].load_state_dict(self.bases[network.source][:copied].state_dict())
        return net.to(self.device).to(memory_format=self.format)

    def loader(self, network: Network, *, training: bool) -> DataLoader[tuple[Tensor, Any]]:
        """Batches: the validation images once, or as many as the training takes, epochs running into each other."""
        task, recipe = self.job.tasks[network.target], self.job.recipe
        files = task.train if training else task.val
        views = PlainViews(files, self.means[network.mean], self.job.geometry.crop, recipe["scale"], training=training)
        sampler = RandomSampler(views, num_samples=task.steps * recipe["batch"]) if training else None
        workers = self.settings.workers
        return DataLoader(
            views,
            recipe["batch"],
            sampler=sampler,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=self.device.type == "cuda",
        )

    def steps(self, network: Network, net: nn.Sequential) -> Iterator[int]:
        """Trains `net`, and yields after each step how many have been done."""
        task, recipe = self.job.tasks[network.target], self.job.recipe
        # In training mode what is frozen drops out all the same: the entrance of stage 7 belongs to the recipe.
        frozen = CUTS[network.n] if network.frozen else 0
        prefix, rest = net[:frozen].requires_grad_(False), net[frozen:]
        optimiser = torch.optim.SGD(
            [
                {"params": [p for name, p in rest.named_parameters() if name.endswith("weight")]},
                {
                    "params": [p for name, p in rest.named_parameters() if name.endswith("bias")],
                    "lr": recipe["lr"] * recipe["bias_lr"],
                    "weight_decay": recipe["weight_decay"] * recipe["bias_decay"],
                },
            ],
            lr=recipe["lr"],
            momentum=recipe["momentum"],
            weight_decay=recipe["weight_decay"],
        )
        schedule = schedule_of(recipe, optimiser, task.steps)
        for step, (x, labels) in enumerate(self.loader(network, training=True), start=1):
            net.train()
            x, labels = self._moved(x, labels)
            with torch.no_grad():
                x = prefix(x)
            loss = F.cross_entropy(rest(x), labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            yield step

    @torch.no_grad()
    def top1(self, net: nn.Sequential, loader: DataLoader[tuple[Tensor, Any]]) -> float:
        """Return the top-1 accuracy of `net` on the validation images."""
        net.eval()
        hits = count = 0
        for x, labels in loader:
            x, labels = self._moved(x, labels)
            hits += int((net(x).argmax(1) == labels).sum())
            count += len(labels)
        return hits / count

    def _moved(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        x = x.to(self.device, memory_format=self.format, non_blocking=True)
        return x, labels.to(self.device, non_blocking=True)


def schedule_of(
    recipe: Mapping[str, Any], optimiser: torch.optim.Optimizer, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """The recipe's learning rate in PyTorch's own schedulers: a linear warm-up, then a cosine or steps."""
    rising = round(recipe["warmup"] * steps)
    main: torch.optim.lr_scheduler.LRScheduler
    if recipe["schedule"] == "cosine":
        main = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps - rising)
    else:
        drops = [round(share * steps) - rising for share in recipe["lr_drops"]]
        main = torch.optim.lr_scheduler.MultiStepLR(optimiser, drops, recipe["lr_factor"])
    if not rising:
        return main
    warmup = torch.optim.lr_scheduler.LinearLR(optimiser, 1 / (rising + 1), total_iters=rising)
    return torch.optim.lr_scheduler.SequentialLR(optimiser, [warmup, main], [rising])


def train(job: PlainJob) -> Iterator[tuple[Network, list[float]]]:
    """Trains every network; yields its top-1 at each check as soon as it is done."""
    assert job.settings is not None
    study = PlainStudy(job, job.settings, mean_images(job))
    for network in job.networks:
        net = study.build(network)
        held_out = study.loader(network, training=False)
        checks = set(job.tasks[network.target].checks)
        found = [study.top1(net, held_out) for step in study.steps(network, net) if step in checks]
        if network.source is None:
            study.bases[network.target] = net
        yield network, found


def tune(job: PlainJob, cores: int) -> list[dict[str, Any]]:
    """Seconds a step of a base and of a network with four frozen layers under the usual settings, fastest first."""
    found, means = [], mean_images(job)
    target = job.networks[0].target
    tried = [Network("base", target, None, 0, False, target), Network("frozen", target, "R", 4, True, target)]
    for threads in sorted({1, cores}):
        for workers in sorted({0, 1, cores}):
            for channels_last in (False, True):
                settings = Settings(threads, workers, channels_last)
                study = PlainStudy(job, settings, means)
                seconds = {network.name: _seconds_per_step(study, network) for network in tried}
                found.append({**dataclasses.asdict(settings), "seconds": seconds})
    return sorted(found, key=lambda each: sum(each["seconds"].values()))


def _seconds_per_step(study: PlainStudy, network: Network) -> float:
    steps = study.steps(network, study.build(network))
    for _, _ in zip(range(_WARM_UP), steps, strict=False):
        pass
    start = time.perf_counter()
    done = sum(1 for _ in zip(range(_TIMED), steps, strict=False))
    return (time.perf_counter() - start) / max(done, 1)


def main(what: str, job: Path, result: Path) -> None:
    """See the module."""
    given = PlainJob.read(job)
    if what == "tune":
        result.write_text(json.dumps(tune(given, torch.get_num_threads())))
        return
    top1: dict[str, list[float]] = {}
    start = time.perf_counter()
    for network, found in train(given):
        top1[network.name] = found
        result.write_text(json.dumps(top1))
        seconds = time.perf_counter() - start
        print(f"{network.name}: {found[-1]:.1%}; {len(top1)} of {len(given.networks)} in {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
