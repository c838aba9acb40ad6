"""The values of the recipe `mini`: the bases under one change at a time, and the gain of base+.

    python -m bench.recipes
    python -m bench.recipes --data tiny-imagenet-200 --classes 10 --epochs 40

Trains the two bases and their base+ of seed 0 for every change, and reads top-1 at the last check, the verdict's gain,
and how smooth the first layer's filters came out (the correlation of neighbouring weights, 0 for initial values).
Writes bench/results/recipes.json, or recipes-<name of the data>.json.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Any

from bench.studies import pair, write_result
from fasttransfer.report.analysis.summary import summarise
from fasttransfer.report.filters import first_filters, smoothness
from fasttransfer.study import records

CHANGES: dict[str, dict[str, float]] = {
    "as shipped": {},
    "batch 32": {"batch": 32},
    "learning rate 0.02": {"lr": 0.02},
    "dropout 0": {"dropout": 0.0},
    "first_init 1": {"first_init": 1.0},
    "first_init 1, weight decay 0.03": {"first_init": 1.0, "weight_decay": 0.03},
    "8 epochs": {"epochs": 8},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="images; by default the built-in ones")
    parser.add_argument("--classes", type=int)
    parser.add_argument("--epochs", type=float, help="of all but the change that is one of epochs")
    parser.add_argument("--only", nargs="+", choices=CHANGES, default=list(CHANGES), metavar="CHANGE")
    chosen = parser.parse_args()
    words = ["--classes", str(chosen.classes)] if chosen.classes else []
    shown = [*(["--data", Path(chosen.data).name] if chosen.data else []), *words]
    words += ["--data", chosen.data] if chosen.data else []
    results: dict[str, Any] = {}
    for name in chosen.only:
        changes = CHANGES[name]
        if chosen.epochs:
            changes = {"epochs": chosen.epochs, **changes}
        with tempfile.TemporaryDirectory() as folder:
            results[name] = _trained(changes, words, Path(folder))
        print(name, json.dumps(results[name]), flush=True)
    command = ["fasttransfer", "grid", "--split", "natural-manmade", *shown, "--treatments", "--seeds", "0"]
    suffix = f"-{Path(chosen.data).stem}" if chosen.data else ""
    write_result(f"recipes{suffix}", " ".join([*command, "--recipe", "RECIPE"]), epochs=chosen.epochs, changes=results)


def _trained(changes: dict[str, float], words: list[str], folder: Path) -> dict[str, Any]:
    text = (files("fasttransfer.study") / "recipes" / "mini.toml").read_text()
    for key, value in {**changes, "checks": 4}.items():
        text, count = re.subn(rf"(?m)^{key} = .*$", f"{key} = {value}", text)
        assert count == 1, key
    recipe = folder / "mini.toml"
    recipe.write_text(text)
    out = folder / "run"
    program = [sys.executable, "-m", "fasttransfer", "grid", "--split", "natural-manmade", *words]
    program += ["--treatments", "--seeds", "0", "--recipe", str(recipe), "--out", str(out)]
    subprocess.run(program, check=True, stdout=subprocess.DEVNULL)
    recorded = records.read_results(out)
    return {
        "bases": {r.target: round(r.last_top1 or 0.0, 4) for r in recorded.results if r.treatment == "base"},
        "gain": pair(summarise(recorded.results, facts=recorded.facts).gain),
        "smoothness": {task: round(smoothness(one.weights), 3) for task, one in first_filters(recorded).items()},
    }


if __name__ == "__main__":
    main()
