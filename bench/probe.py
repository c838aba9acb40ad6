"""What a stack of heads takes against one head alone, and how long a whole sweep is.

    python bench/probe.py
    python bench/probe.py --study RUN

Features are drawn: those of a ReLU, around a centre of each class. A stack is trained on all examples and scored on as
many validation images as training images have a half of, on one thread, as `fasttransfer probe` does it; the plain
form is `torch.nn.Linear` and `torch.optim.SGD` in float32 on the same batches. The sweep is that of 12,000 images x
256 values: six numbers of examples, five seeds, four rates, three decays, on all cores. Writes
bench/results/probe.json.

With a study it is accuracy that is compared, on features of its baseA on task B: features brought to length 1 by one
factor against a factor for each of them, and 300 steps against 1000. Writes bench/results/probe-choices.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fasttransfer.bench.timing import compare
from fasttransfer.core import devices, machine
from fasttransfer.core.files import replace_file
from fasttransfer.features.network_features import open_network, read_features
from fasttransfer.probe import examples, heads
from fasttransfer.probe.examples import STEPS, ExampleSet, draw_example_sets
from fasttransfer.probe.sweep import HeadTrainer, SweepSettings, choose_dtype
from fasttransfer.study import environment, records

CPU = torch.device("cpu")
MANY = 20
PARTS: tuple[Literal["train", "val"], ...] = ("train", "val")
SIZES = {
    "1,280 images x 256 values, 16 classes": (1280, 256, 16),
    "1,280 images x 9,216 values, 16 classes": (1280, 9216, 16),
    "12,000 images x 256 values, 40 classes": (12_000, 256, 40),
}


def draw(images: int, width: int, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """(n, E) bfloat16 and labels."""
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(images) % classes
    noise = torch.randn(images, width, generator=torch.Generator().manual_seed(seed))
    return (0.3 * centres[labels] + noise).relu().bfloat16(), labels


def plain(x: Tensor, labels: Tensor, classes: int, batches: list[Tensor]) -> Tensor:
    """One head as it is usually written."""
    head = torch.nn.Linear(x.shape[1], classes)
    optimiser = torch.optim.SGD(head.parameters(), lr=1.0, momentum=0.9, weight_decay=1e-4)
    mean, scale = heads.compute_centring(x)
    x = (x.float() - mean) * scale
    for ids in batches:
        optimiser.zero_grad()
        F.cross_entropy(head(x[ids]), labels[ids]).backward()
        optimiser.step()
    return head.weight


def measure(images: int, width: int, classes: int, rounds: int, steps: int) -> dict[str, Any]:
    """Seconds of a stack of one and of MANY heads, and of the plain form of one."""
    x, labels = draw(images, width, classes, 1)
    x_val, val_labels = draw(images // 2, width, classes, 2)
    lesson = ExampleSet(None, 0, None, torch.arange(images), torch.arange(0))
    batches = list(itertools.islice(lesson.batches(), steps))

    def stack(count: int) -> Callable[[int], object]:
        pairs = list(itertools.product((0.3, 1.0, 3.0, 10.0, 30.0), (0.0, 1e-5, 1e-4, 1e-3)))[:count]
        rates, decays = zip(*pairs, strict=True)

        def call(i: int) -> object:
            found = heads.train(x, labels, classes, batches, rates=rates, decays=decays, dtype=choose_dtype(CPU))
            return heads.score(found, x_val, val_labels)

        return call

    calls = {"1 head": stack(1), f"{MANY} heads": stack(MANY)}
    calls["1 head, plain PyTorch"] = lambda i: plain(x, labels, classes, batches)
    timed = compare(calls, CPU, rounds=rounds, sample=0.0)
    one = timed["1 head"].median
    return {
        "batch": lesson.batch,
        "steps": steps,
        "seconds": {name: round(t.median, 4) for name, t in timed.items()},
        "times_one_head": {name: round(t.median / one, 3) for name, t in timed.items()},
    }


def sweep(images: int, width: int, classes: int, seeds: int) -> dict[str, Any]:
    """Seconds of a whole sweep on features in memory, on all cores."""
    x, labels = draw(images, width, classes, 1)
    x_val, val_labels = draw(images // 2, width, classes, 2)
    asked = SweepSettings(
        (5,), (1, 2, 5, 10, 25, None), tuple(range(seeds)), (1.0, 3.0, 10.0, 30.0), (1e-5, 1e-4, 1e-3)
    )
    start = time.perf_counter()
    lessons = draw_example_sets(labels, [str(i) for i in range(classes)], asked.examples, asked.seeds)
    stacks = HeadTrainer(x, labels, x_val, val_labels, torch.arange(images), asked, classes, choose_dtype(CPU))
    with ThreadPoolExecutor(machine.cores(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        scored = list(pool.map(stacks.train_and_score, lessons))
    seconds = time.perf_counter() - start
    reported = sum(lesson.fold is None for lesson in lessons) * len(asked.pairs)
    return {
        "images": images,
        "values": width,
        "classes": classes,
        "heads reported": reported,
        "heads trained": len(scored) * len(asked.pairs),
        "cores": machine.cores(),
        "seconds": round(seconds, 2),
    }


def standardised(features: Tensor) -> tuple[Tensor, Tensor]:
    """As `heads.compute_centring`, but a factor for each feature; those that hardly vary are held back."""
    x = features.float()
    mean = x.mean(0)
    deviations = x.std(0) + 0.01 * (x - mean).std()
    length = ((x - mean) / deviations).square().sum(1).mean().sqrt()
    return mean, 1 / (deviations * length)


def choices(run: Path, cuts: tuple[int, ...], seeds: tuple[int, ...]) -> dict[str, Any]:
    """Top-1 on the validation images, mean over seeds, of the best of 24 heads: what each form could reach."""
    asked = open_network(run, "baseA", task="B")
    train, val = (torch.from_numpy(asked.images[part].labels) for part in PARTS)
    lessons = [x for x in draw_example_sets(train, asked.classes, (1, 5, 25, None), seeds) if x.fold is None]
    rates, decays = zip(*itertools.product((0.03, 0.1, 0.3, 1.0, 3.0, 10.0), (1e-5, 1e-4, 1e-3, 1e-2)), strict=True)
    forms = {"one factor": heads.compute_centring, "standardised": standardised}
    found: dict[str, Any] = {}
    for cut in cuts:
        x, x_val = (read_features(asked, [cut], part, asked.ids(part), keep=True)[cut].flat() for part in PARTS)
        for (form, centre), steps in itertools.product(forms.items(), (300, 1000)):
            heads.compute_centring, examples.STEPS = centre, steps
            best = {}
            for k in (1, 5, 25, None):
                hits = torch.stack(
                    [
                        heads.score(
                            heads.train(
                                x[lesson.rows], train[lesson.rows], len(asked.classes), list(lesson.batches()),
                                rates=rates, decays=decays, dtype=choose_dtype(CPU),
                            ),
                            x_val,
                            val,
                        )[0]
                        for lesson in lessons
                        if lesson.per_class == k
                    ]
                )  # fmt: skip
                best[str(k or "all")] = round(float(hits.mean(0).max()) / len(val), 4)
            found.setdefault(f"cut {cut}", {})[f"{form}, {steps} steps"] = best
            print(f"cut {cut}, {form}, {steps} steps: {best}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, steps and seeds; rough numbers")
    parser.add_argument("--study", type=Path, help="folder of a study: compare accuracies on its features")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    devices.keep_freed_memory()
    out = chosen.out or Path(__file__).parent / "results" / f"probe{'-choices' if chosen.study else ''}.json"
    if chosen.study:
        found = choices(chosen.study, (1, 6), (0, 1))
        about = {"command": "python bench/probe.py --study RUN", "machine": environment.describe_machine()}
        write(out, about | {"data": Path(records.read_results(chosen.study).study["data"]).name, "top1": found})
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    result: dict[str, Any] = {
        "command": "python bench/probe.py" + " --quick" * chosen.quick,
        "machine": environment.describe_machine(),
        "dtype": str(choose_dtype(CPU)).removeprefix("torch."),
        "stacks": {},
    }
    for name, size in SIZES.items():
        found = measure(*size, rounds=3 if chosen.quick else 7, steps=30 if chosen.quick else STEPS)
        result["stacks"][name] = found
        print(f"{name}: {found['times_one_head']}", flush=True)
    torch.set_num_threads(threads)
    result["sweep"] = sweep(12_000, 256, 40, seeds=1 if chosen.quick else 5)
    print(result["sweep"])
    write(out, result)


def write(out: Path, result: dict[str, Any]) -> None:
    with replace_file(out) as file:
        file.write((json.dumps(result, indent=1) + "\n").encode())
    print(f"written: {out}")


if __name__ == "__main__":
    main()
