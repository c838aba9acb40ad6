"""The share of a trained network's features that is not zero, and what packing them costs and saves.

    fasttransfer grid --split natural-manmade --classes 40 --epochs 20 --treatments --data tiny-imagenet-200 --out RUN
    python -m bench.features RUN

Densities are those of the validation images, centre crops, in bfloat16, of each base on its own task and on the
other. Rates are those of one core, in GB of dense features per second, on features of the training images strung
together to records of 256 x 6 x 6 elements, the paper's cut 5, whatever the size of the study's network. lz4 and
zstandard are measured where they are installed, on blocks of 64 records: longer ones than random access would allow
them. Writes bench/results/features.json.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.studies import write_result
from fasttransfer import ops
from fasttransfer.bench.harness import Call, Rounds, Samples
from fasttransfer.core import devices, machine, tensor_files
from fasttransfer.core.files import cache_folder
from fasttransfer.features.shards import ShardReader, write_shard
from fasttransfer.networks.caffenet import CAFFENET
from fasttransfer.pipelines import prepare
from fasttransfer.pipelines.store import Store
from fasttransfer.pipelines.streams import select_task_images
from fasttransfer.study import paths, records
from fasttransfer.study.cells import TASKS, base
from fasttransfer.study.configuration import Choices, Study
from fasttransfer.study.paths import mean_file
from fasttransfer.training.study_plan import make_plan

CPU = torch.device("cpu")
CUTS = range(1, 7)  # stage 7 begins with a dropout: for n = 7 it is cut 6 that is kept
ELEMENTS = int(np.prod(CAFFENET.cut_shape(5)))
RECORDS, BLOCK = 2048, 64  # 38 MB of dense features, more than the caches hold; what is packed at a time

Codec = tuple[str, Callable[[bytes], bytes], Callable[[bytes], bytes]]  # name, there, back


@dataclass(frozen=True)
class TrainedStudy:
    """The bases and images of a study."""

    study: Study
    folder: Path
    classes: Mapping[str, tuple[str, ...]]
    store: Store

    def features(self, source: str, target: str, part: str) -> dict[int, Tensor]:
        """Return the features of `target`'s images by the base of `source`: cut -> (N, E) in memory order."""
        study = self.study
        network = study.recipe.network
        net = network.build(study.recipe.outputs_for(source, self.classes), "bf16", CPU)
        net.load(tensor_files.load(paths.weights_file(self.folder, base(source, study.seeds[0])))[0])
        images = select_task_images(self.store, getattr(self.store, part), self.classes[target])
        mean = torch.from_numpy(np.load(mean_file(self.folder, source)))
        found: dict[int, list[Tensor]] = {n: [] for n in CUTS}
        for rows in np.array_split(images.rows, max(1, len(images) // 500)):
            pixels = torch.from_numpy(images.part.gather(rows))
            middle = torch.full((len(rows),), network.margin // 2)
            straight = torch.zeros(len(rows), dtype=torch.bool)
            x = ops.augment(
                [pixels], torch.arange(len(rows)), mean, middle, middle, straight, crop=network.crop,
                scale=study.recipe.pixel_scale, dtype=torch.bfloat16,
            )  # fmt: skip
            for n in CUTS:
                x = net(x, start=n - 1, stop=n)
                found[n].append((x.permute(0, 2, 3, 1) if x.dim() == 4 else x).flatten(1))
        return {n: torch.cat(parts) for n, parts in found.items()}


def open_study(folder: Path) -> TrainedStudy:
    """Return the study in `folder`, with its images prepared."""
    study = Study.read(paths.study_file(folder))
    plan = make_plan(Choices(data=study.data, split=study.split, classes=study.classes))
    store = prepare.prepare(
        Path(study.data),
        size=study.recipe.network.store,
        cache=cache_folder(),
        bad_images=study.bad_images,
        log=print,
    )
    return TrainedStudy(study, folder, plan.classes, store)


def kept(x: Tensor) -> float:
    """Return the share of elements that are not zero."""
    return int(torch.count_nonzero(x.view(torch.int16))) / x.numel()


def strung(x: Tensor) -> Tensor:
    """Return (RECORDS, ELEMENTS) of the features in `x`, repeated if they do not suffice."""
    flat = x.flatten()
    return flat.repeat(-(-RECORDS * ELEMENTS // flat.numel()))[: RECORDS * ELEMENTS].view(RECORDS, ELEMENTS)


def codecs() -> Iterator[Codec]:
    """Yield the installed general compressors: name, compress, decompress."""
    try:
        lz4 = importlib.import_module("lz4.block")
        yield "lz4", lz4.compress, lz4.decompress
    except ImportError:
        print("lz4 is not installed: pip install lz4")
    try:
        zstandard = importlib.import_module("zstandard")
        yield "zstd -1", zstandard.ZstdCompressor(1).compress, zstandard.ZstdDecompressor().decompress
    except ImportError:
        print("zstandard is not installed: pip install zstandard")


def timed(
    x: Tensor, rounds: int, others: Iterable[Codec] = (), records: int = BLOCK
) -> tuple[dict[str, int], dict[str, Samples]]:
    """Return the bytes packed and by `others`, and the seconds to "pack" and to "unpack" some records."""
    blocks = x.split(records)
    packed = [ops.pack_features(block) for block in blocks]
    target = torch.empty_like(blocks[0])
    there: dict[str, Call] = {"packed": lambda i: ops.pack_features(blocks[i % len(blocks)])}
    back: dict[str, Call] = {"packed": lambda i: ops.unpack_features(packed[i % len(packed)], (ELEMENTS,))}
    sizes = {"packed": sum(t.numel() * t.element_size() for p in packed for t in p)}
    for name, compress, decompress in others:
        raw = [block.view(torch.uint8).numpy().tobytes() for block in blocks]
        small = [compress(block) for block in raw]
        assert all(decompress(s) == r for s, r in zip(small, raw, strict=True))
        sizes[name] = sum(map(len, small))
        there[name] = lambda i, f=compress, raw=raw: f(raw[i % len(raw)])  # type: ignore[misc]
        back[name] = lambda i, f=decompress, small=small: f(small[i % len(small)])  # type: ignore[misc]
    there["copy"] = back["copy"] = lambda i: target.copy_(blocks[i % len(blocks)])
    return sizes, {way: Rounds(calls, x.device).run(rounds) for way, calls in (("pack", there), ("unpack", back))}


def measure(x: Tensor, rounds: int) -> dict[str, Any]:
    """Return sizes relative to dense features, and the rates of one core in both directions."""
    sizes, timings = timed(x, rounds, codecs())
    rates = {
        way: {name: round(BLOCK * ELEMENTS * 2 / median(t) / 1e9, 3) for name, t in calls.items()}
        for way, calls in timings.items()
    }
    return {
        "of_dense": {name: round(size / (x.numel() * 2), 4) for name, size in sizes.items()},
        "pack_gb_s": rates["pack"],
        "unpack_gb_s": rates["unpack"],
    }


def stored(x: Tensor, folder: Path) -> float:
    """Return the size of features in a shard relative to dense ones."""
    with write_shard(
        folder / "stored.shard", entry="bench", position=0, first=0, shape=x.shape[1:], packed=True
    ) as shard:
        shard.append(x)
    return (folder / "stored.shard").stat().st_size / (2 * x.numel())


def measure_shards(x: Tensor, rounds: int, folder: Path) -> dict[str, Any]:
    """Return rates of writing (with fsync) and of reading verified batches in random order from the page cache."""
    path, shape = folder / "0.shard", CAFFENET.cut_shape(5)
    features = x.view(len(x), *shape[1:], shape[0]).permute(0, 3, 1, 2)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0)).split(BLOCK)

    def write(packed: bool) -> None:
        with write_shard(path, entry="bench", position=0, first=0, shape=shape, packed=packed) as shard:
            shard.append(features)

    found = {}
    for kind, packed in (("packed", True), ("dense", False)):
        written = Rounds({"write": lambda i, p=packed: write(p)}, CPU).run(3)["write"]  # type: ignore[misc]
        found[f"write {kind}"] = round(x.numel() * 2 / median(written) / 1e9, 3)
        for threads in sorted({1, machine.cores()}):
            with ShardReader([path], entry="bench", shape=shape, threads=threads) as reader:
                batches = reader.batches(itertools.cycle(order))
                read = Rounds({"read": lambda i, b=batches: next(b)}, CPU).run(rounds)["read"]  # type: ignore[misc]
                batches.close()
            name = f"read {kind}, {threads} thread{'s' * (threads > 1)} and the caller"
            found[name] = round(BLOCK * ELEMENTS * 2 / median(read) / 1e9, 3)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="folder of a trained study")
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    devices.keep_freed_memory()
    with torch.inference_mode():
        trained = open_study(chosen.study)
        dense = {(s, t): trained.features(s, t, "val") for s in TASKS for t in TASKS}
        strings = {n: strung(x) for n, x in trained.features("A", "A", "train").items()}
        torch.set_num_threads(1)
        result: dict[str, Any] = {
            "study": {
                "data": Path(trained.study.data).name,
                "geometry": trained.study.recipe.network.name,
                "epochs": trained.study.recipe.epochs,
                "top1": [round(r.last_top1 or 0.0, 3) for r in records.read_results(chosen.study).results],
            },
            "cuts": {},
        }
        print(f"{'cut':3}  {'not 0: own, other task':22}  {'of dense, GB/s there, back':26}")
        for n in CUTS:
            shares = {f"base {s} on {t}": round(kept(x[n]), 4) for (s, t), x in dense.items()}
            own, other = (np.mean([v for k, v in shares.items() if (k[5] == k[-1]) == same]) for same in (True, False))
            found = measure(strings[n], chosen.rounds)
            with tempfile.TemporaryDirectory() as folder:
                found["of_dense"]["shard"] = round(stored(strings[n], Path(folder)), 4)
            shape = trained.study.recipe.network.cut_shape(n)
            result["cuts"][n] = {"shape": shape, "not_zero": shares} | found
            print(f"{n:3}  {own:9.1%} {other:9.1%}", end="")
            for name in found["pack_gb_s"]:
                size = f"{found['of_dense'][name]:.1%}, " if name in found["of_dense"] else ""
                print(f"   {name} {size}{found['pack_gb_s'][name]:.2f}, {found['unpack_gb_s'][name]:.2f}", end="")
            print(f"   in a shard {found['of_dense']['shard']:.1%}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            result["shards_gb_s"] = measure_shards(strings[5], chosen.rounds, Path(folder))
        print(json.dumps(result["shards_gb_s"], indent=1))
    write_result("features", "python -m bench.features RUN", **result)


if __name__ == "__main__":
    main()
