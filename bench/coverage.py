"""The coverage of the 95 % intervals of `fasttransfer.report.analysis`, in simulated studies.

Run `python -m bench.coverage` (about a minute on one core; the numbers do not depend on the
machine). It prints the tables of docs/decisions/intervals.md and writes bench/results/coverage.json.

A simulated study has two targets and 37 networks per target and seed: base, base+ and five treatments at n = 1 to 7.
Every network has noise of the same size, NOISE. The noise of a base is carried into what is copied from it, by the
share `rho`; the rest is its own. Each seed moves all networks of a target alike. With one seed the scores come
from IMAGES validation images per target, easy and hard ones, so that networks err on related images.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist, median
from typing import Any

import numpy as np
import numpy.typing as npt

from fasttransfer.core.intervals import Estimate
from fasttransfer.networks.caffenet import CAFFENET
from fasttransfer.report.analysis.effects import Contrast, Key, minus
from fasttransfer.report.analysis.noise import Noise
from fasttransfer.study.cells import BASE, BASE_PLUS, TREATMENTS
from fasttransfer.study.records import Evaluation, Result

COMMAND = "python -m bench.coverage"
TARGETS = ("A", "B")
NOISE = 0.01  # standard deviation of one network's top-1
SEED_EFFECT = 0.02
IMAGES = 2000
DIFFICULTY = 1.5  # spread of the images' difficulty over that of what one network makes of one image
STUDIES, STUDIES_OF_IMAGES = 2000, 500
KEYS: tuple[Key, ...] = (
    (BASE, 0),
    (BASE_PLUS, 0),
    *((treatment, n) for treatment in TREATMENTS for n in CAFFENET.cuts),
)
LEVEL = 0.6
EFFECT = {
    "base": 0.0,
    "base+": 0.0,
    "selffer": -0.02,
    "selffer+": 0.0,
    "transfer": -0.06,
    "transfer+": 0.01,
    "random": -0.2,
}

Scores = dict[tuple[str, int, Key], float]


def at(n: int) -> dict[str, Contrast]:
    """Return the contrasts at one n."""
    return {
        "freezing": minus(("selffer+", n), ("selffer", n)),
        "specificity": minus(("selffer", n), ("transfer", n)),
        "boost": minus(("transfer+", n), ("selffer+", n)),
        "base+ - base": minus((BASE_PLUS, 0), (BASE, 0)),
    }


@dataclass(frozen=True)
class Quantity:
    """A mean of contrasts over targets (and n)."""

    targets: tuple[str, ...]
    contrasts: tuple[Contrast, ...]

    def estimate(self, noise: Noise, seeds: int) -> Estimate:
        """Return its estimate from a study."""
        found = noise.mean((t, s, c) for t in self.targets for s in range(seeds) for c in self.contrasts)
        assert found is not None
        return found

    def value(self, of: Callable[[str, Key], float]) -> float:
        """Return its value where `of` gives the score of a network."""
        each = [w * of(t, key) for t in self.targets for c in self.contrasts for key, w in c]
        return math.fsum(each) / len(self.targets) / len(self.contrasts)


MAIN = {name: Quantity(TARGETS, (contrast,)) for name, contrast in at(4).items()}
OTHERS = {
    "boost, mean over n": Quantity(TARGETS, tuple(at(n)["boost"] for n in CAFFENET.cuts)),
    "specificity, mean over n": Quantity(TARGETS, tuple(at(n)["specificity"] for n in CAFFENET.cuts)),
    "specificity, one target": Quantity(("B",), (at(4)["specificity"],)),
    "specificity, one target, mean over n": Quantity(("B",), tuple(at(n)["specificity"] for n in CAFFENET.cuts)),
    "transfer - base": Quantity(TARGETS, (minus(("transfer", 4), (BASE, 0)),)),
    "random - base": Quantity(TARGETS, (minus(("random", 4), (BASE, 0)),)),
}
DEEP = {f"{name}, n = 7": Quantity(TARGETS, (at(7)[name],)) for name in ("freezing", "specificity", "boost")}


def mean_score(target: str, key: Key) -> float:
    """Return the score of a network without any noise."""
    return LEVEL + (0.1 if target == "B" else 0.0) + EFFECT[key[0]]


def draw(random: np.random.Generator, seeds: int, rho: float, *, deep: float = 1.0, common: float = 0.0) -> Scores:
    """Draw the scores of one study.

    Args:
        random: the generator.
        seeds: how many.
        rho: the share of a base's noise that what is copied from it inherits.
        deep: how many times as noisy frozen networks of n = 6 and 7 are.
        common: correlation, within a target and seed, of the noise of all n of one treatment.
    """
    scores: Scores = {}
    for seed in range(seeds):
        level = SEED_EFFECT * random.normal()
        luck = dict(zip(TARGETS, random.normal(size=2), strict=True))
        for target, other in (TARGETS, TARGETS[::-1]):
            shared = dict(zip(EFFECT, random.normal(size=len(EFFECT)), strict=True))
            own = random.normal(size=len(KEYS))
            for (treatment, n), alone in zip(KEYS, own, strict=True):
                rest = math.sqrt(common) * shared[treatment] + math.sqrt(1 - common) * alone
                if treatment == BASE:
                    noise = luck[target]
                elif treatment == "random":
                    noise = rest
                else:
                    source = luck[other] if treatment.startswith("transfer") else luck[target]
                    noise = rho * source + math.sqrt(1 - rho**2) * rest
                if n >= 6 and treatment in ("selffer", "transfer"):
                    noise *= deep
                key = (treatment, n)
                scores[target, seed, key] = mean_score(target, key) + level + NOISE * noise
    return scores


def result(target: str, seed: int, key: Key, top1: float, correct: bytes | None = None) -> Result:
    """Return a finished network."""
    treatment, n = key
    return Result(
        f"{treatment} {n} {target}", treatment, target, None, n, seed, "done", 1, (Evaluation(1, 1.0, 1.0, top1),),
        correct=correct,
    )  # fmt: skip


def over_seeds(
    quantities: Mapping[str, Quantity], seeds: int, rho: float, studies: int = STUDIES, **failing: float
) -> dict[str, dict[str, Any]]:
    """Return coverage and median half width (over NOISE) of each quantity."""
    random = np.random.default_rng([seeds, round(100 * rho), *(round(100 * v) for v in failing.values())])
    halves: dict[str, list[float]] = {name: [] for name in quantities}
    hits = dict.fromkeys(quantities, 0)
    kinds = {}
    for _ in range(studies):
        scores = draw(random, seeds, rho, **failing)
        noise = Noise(result(*network, value) for network, value in scores.items())
        for name, quantity in quantities.items():
            found = quantity.estimate(noise, seeds)
            assert found.half is not None
            halves[name].append(found.half / NOISE)
            hits[name] += abs(found.value - quantity.value(mean_score)) <= found.half
            kinds[name] = found.kind
    return {
        name: {"coverage": hits[name] / studies, "half": round(median(halves[name]), 2), "kind": kinds[name]}
        for name in quantities
    }


def over_images(
    quantities: Mapping[str, Quantity], rho: float, studies: int = STUDIES_OF_IMAGES
) -> dict[str, dict[str, Any]]:
    """Return the coverage with one seed: of the value on other images, and of the value of other seeds."""
    random = np.random.default_rng([1, round(100 * rho)])
    normal, spread = NormalDist(), math.sqrt(1 + DIFFICULTY**2)
    facts = {"val_pictures": dict.fromkeys(TARGETS, IMAGES)}
    halves: dict[str, list[float]] = {name: [] for name in quantities}
    images, seeds = dict.fromkeys(quantities, 0), dict.fromkeys(quantities, 0)
    for _ in range(studies):
        scores = draw(random, 1, rho)
        results = []
        for target in TARGETS:
            difficulty = DIFFICULTY * random.normal(size=IMAGES)
            for key in KEYS:
                ability = spread * normal.inv_cdf(scores[target, 0, key])
                right: npt.NDArray[np.bool_] = ability + random.normal(size=IMAGES) > difficulty
                results.append(result(target, 0, key, float(right.mean()), np.packbits(right).tobytes()))
        noise = Noise(results, facts)

        def at_hand(target: str, key: Key, scores: Scores = scores) -> float:
            return scores[target, 0, key]

        for name, quantity in quantities.items():
            found = quantity.estimate(noise, 1)
            assert found.half is not None and found.kind == "images"
            halves[name].append(found.half / NOISE)
            images[name] += abs(found.value - quantity.value(at_hand)) <= found.half
            seeds[name] += abs(found.value - quantity.value(mean_score)) <= found.half
    return {
        name: {
            "coverage_other_images": images[name] / studies,
            "coverage_other_seeds": seeds[name] / studies,
            "half": round(median(halves[name]), 2),
            "kind": "images",
        }
        for name in quantities
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return one part of the results as a Markdown table."""
    names = list(rows[0]["quantities"])
    lines = ["| " + " | ".join(["seeds", "rho", *names]) + " |", "|---" * (2 + len(names)) + "|"]
    for row in rows:
        cells = []
        for name in names:
            found = row["quantities"][name]
            if "coverage" in found:
                cells.append(f"{100 * found['coverage']:.1f} ({found['half']:.1f})")
            else:
                shares = (found["coverage_other_images"], found["coverage_other_seeds"])
                cells.append(f"{100 * shares[0]:.1f} / {100 * shares[1]:.1f} ({found['half']:.1f})")
        lines.append("| " + " | ".join([str(row["seeds"]), str(row["rho"]), *cells]) + " |")
    return "\n".join(lines)


def main() -> None:
    """Simulate, print and write."""
    shares = (0.0, 0.3, 0.6)
    several: list[dict[str, Any]] = [
        {"seeds": s, "rho": r, "quantities": over_seeds({**MAIN, **OTHERS}, s, r)} for s in (2, 3, 5) for r in shares
    ]
    parts: dict[str, list[dict[str, Any]]] = {
        "over seeds": several,
        "one seed: other images / other seeds": [
            {"seeds": 1, "rho": r, "quantities": over_images(MAIN, r)} for r in shares
        ],
        "frozen networks of n = 6 and 7 twice as noisy": [
            {"seeds": s, "rho": 0.3, "quantities": over_seeds({**MAIN, **DEEP}, s, 0.3, deep=2.0)} for s in (2, 3)
        ],
        "networks of one treatment and seed correlated by 0.5": [
            {"seeds": s, "rho": 0.3, "quantities": over_seeds({**MAIN, **OTHERS}, s, 0.3, common=0.5)} for s in (2, 3)
        ],
    }
    for title, rows in parts.items():
        print(f"{title}: coverage in % (median half width over the noise of one network)\n{table(rows)}\n")
    written = {
        "command": COMMAND, "studies": STUDIES, "studies_one_seed": STUDIES_OF_IMAGES, "noise": NOISE,
        "seed_effect": SEED_EFFECT, "images": IMAGES, "parts": parts,
    }  # fmt: skip
    path = Path(__file__).parent / "results" / "coverage.json"
    path.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
