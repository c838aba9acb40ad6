"""A stack of linear heads against one head alone, and how long a whole sweep takes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fasttransfer.bench.harness import Call
from fasttransfer.core import machine
from fasttransfer.probe import heads
from fasttransfer.probe.examples import STEPS, ExampleSet, draw_example_sets
from fasttransfer.probe.sweep import HeadTrainer, SweepSettings, choose_dtype

CPU = torch.device("cpu")
MANY = 20
SIZES = {
    "1,280 images x 256 values, 16 classes": (1280, 256, 16),
    "1,280 images x 9,216 values, 16 classes": (1280, 9216, 16),
    "12,000 images x 256 values, 40 classes": (12_000, 256, 40),
}


def draw(images: int, width: int, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return (images, width) bfloat16 features and their labels."""
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(images) % classes
    noise = torch.randn(images, width, generator=torch.Generator().manual_seed(seed))
    return (0.3 * centres[labels] + noise).relu().bfloat16(), labels


def plain(x: Tensor, labels: Tensor, classes: int, batches: list[Tensor]) -> Tensor:
    """Train one head as it is usually written."""
    head = torch.nn.Linear(x.shape[1], classes)
    optimiser = torch.optim.SGD(head.parameters(), lr=1.0, momentum=0.9, weight_decay=1e-4)
    mean, scale = heads.compute_centring(x)
    x = (x.float() - mean) * scale
    for ids in batches:
        optimiser.zero_grad()
        F.cross_entropy(head(x[ids]), labels[ids]).backward()
        optimiser.step()
    return head.weight


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("size", SIZES)
def test_heads(compare: Callable[..., Any], quick: bool, size: str) -> None:
    images, width, classes = SIZES[size]
    x, labels = draw(images, width, classes, 1)
    x_val, val_labels = draw(images // 2, width, classes, 2)
    examples = ExampleSet(None, 0, None, torch.arange(images), torch.arange(0))
    batches = list(itertools.islice(examples.batches(), 30 if quick else STEPS))

    def stack(count: int) -> Call:
        pairs = list(itertools.product((0.3, 1.0, 3.0, 10.0, 30.0), (0.0, 1e-5, 1e-4, 1e-3)))[:count]
        rates, decays = zip(*pairs, strict=True)

        def call(i: int) -> object:
            found = heads.train(x, labels, classes, batches, rates=rates, decays=decays, dtype=choose_dtype(CPU))
            return heads.score(found, x_val, val_labels)

        return call

    calls = {"1 head": stack(1), f"{MANY} heads": stack(MANY)}
    calls["1 head, plain PyTorch"] = lambda i: plain(x, labels, classes, batches)
    compare(calls, sample=0.0, work=1, unit="calls", steps=len(batches), dtype=str(choose_dtype(CPU)))


def test_sweep(benchmark: Any, quick: bool) -> None:
    """A whole sweep on features in memory, on all cores."""
    images, width, classes = 12_000, 256, 40
    x, labels = draw(images, width, classes, 1)
    x_val, val_labels = draw(images // 2, width, classes, 2)
    settings = SweepSettings(
        (5,), (1, 2, 5, 10, 25, None), tuple(range(1 if quick else 5)), (1.0, 3.0, 10.0, 30.0), (1e-5, 1e-4, 1e-3)
    )

    def sweep() -> int:
        sets = draw_example_sets(labels, [str(i) for i in range(classes)], settings.examples, settings.seeds)
        trainer = HeadTrainer(x, labels, x_val, val_labels, torch.arange(images), settings, classes, choose_dtype(CPU))
        with ThreadPoolExecutor(machine.cores(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return len(list(pool.map(trainer.train_and_score, sets))) * len(settings.pairs)

    trained = benchmark.pedantic(sweep)
    seconds = benchmark.stats.stats.median
    benchmark.extra_info.update({"work": [trained, "heads"], "seconds": {"sweep": [seconds]}})
    print(f"a sweep of {trained} heads: {seconds:.1f} s", flush=True)
