"""Top-1 of linear heads with one factor for all features, and with a factor for each, on the features of a study.

    python -m bench.probe_choices RUN

Writes bench/results/probe-choices.json.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from bench.studies import write_result
from fasttransfer.features.network_features import open_network, read_features
from fasttransfer.probe import examples, heads
from fasttransfer.probe.examples import draw_example_sets
from fasttransfer.probe.sweep import choose_dtype
from fasttransfer.study import records

CPU = torch.device("cpu")
PARTS: tuple[Literal["train", "val"], ...] = ("train", "val")


def standardised(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and a factor for each feature, smaller for features that hardly vary."""
    x = features.float()
    mean = x.mean(0)
    deviations = x.std(0) + 0.01 * (x - mean).std()
    length = ((x - mean) / deviations).square().sum(1).mean().sqrt()
    return mean, 1 / (deviations * length)


def choices(run: Path, cuts: tuple[int, ...], seeds: tuple[int, ...]) -> dict[str, Any]:
    """Return the best of 24 heads' top-1 on the validation images, mean over seeds: what each form could reach."""
    network = open_network(run, "baseA", task="B")
    train, val = (torch.from_numpy(network.images[part].labels) for part in PARTS)
    example_sets = [x for x in draw_example_sets(train, network.classes, (1, 5, 25, None), seeds) if x.fold is None]
    rates, decays = zip(*itertools.product((0.03, 0.1, 0.3, 1.0, 3.0, 10.0), (1e-5, 1e-4, 1e-3, 1e-2)), strict=True)
    forms = {"one factor": heads.compute_centring, "standardised": standardised}
    found: dict[str, Any] = {}
    for cut in cuts:
        x, x_val = (read_features(network, [cut], part, network.ids(part), keep=True)[cut].flat() for part in PARTS)
        for (form, centre), steps in itertools.product(forms.items(), (300, 1000)):
            heads.compute_centring, examples.STEPS = centre, steps
            best = {}
            for k in (1, 5, 25, None):
                hits = torch.stack(
                    [
                        heads.score(
                            heads.train(
                                x[chosen.rows], train[chosen.rows], len(network.classes), list(chosen.batches()),
                                rates=rates, decays=decays, dtype=choose_dtype(CPU),
                            ),
                            x_val,
                            val,
                        )[0]
                        for chosen in example_sets
                        if chosen.per_class == k
                    ]
                )  # fmt: skip
                best[str(k or "all")] = round(float(hits.mean(0).max()) / len(val), 4)
            found.setdefault(f"cut {cut}", {})[f"{form}, {steps} steps"] = best
            print(f"cut {cut}, {form}, {steps} steps: {best}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="folder of a study")
    study = parser.parse_args().study
    data = Path(records.read_results(study).study["data"]).name
    write_result("probe-choices", "python -m bench.probe_choices RUN", data=data, top1=choices(study, (1, 6), (0, 1)))


if __name__ == "__main__":
    main()
