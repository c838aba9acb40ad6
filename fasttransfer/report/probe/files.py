"""The files of a probe in the study's folder: every head as CSV, means and settings as JSON, the figure."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from fasttransfer.core.files import make_folder
from fasttransfer.probe.examples import STEPS
from fasttransfer.probe.heads import MOMENTUM
from fasttransfer.probe.sweep import Head, ProbeResults
from fasttransfer.report import files
from fasttransfer.report.probe.beside import StudyReference
from fasttransfer.report.probe.figure import accuracy
from fasttransfer.report.probe.table import rules
from fasttransfer.study import environment

ALL = "all"
_SCORES = ("held_out_top1", "held_out_loss", "val_top1", "val_loss")


def write(probed: ProbeResults, beside: StudyReference, folder: Path, command: str) -> None:
    """Write heads.csv, probe.json and accuracy.svg, .pdf, .png into `folder`; `command` makes them again.

    The same heads give the same bytes of CSV, SVG and PDF.

    Raises:
        InputError: the folder cannot be written.
    """
    make_folder(folder)
    files.write(folder / "heads.csv", heads_csv(probed))
    files.write(folder / "probe.json", (json.dumps(facts(probed, beside, command), indent=1) + "\n").encode())
    files.write_figure(folder, "accuracy", accuracy(probed, beside))


def heads_csv(probed: ProbeResults) -> bytes:
    """Return a row for each head, trained on all its examples; see `fasttransfer.probe.sweep.Head`."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(Head._fields)
    for head in probed.heads:
        found = head._asdict()
        scores = {name: "" if found[name] is None else f"{found[name]:.6f}" for name in _SCORES}
        plain = {"per_class": ALL if head.per_class is None else head.per_class, "chosen": int(head.chosen)}
        writer.writerow((found | scores | plain).values())
    return out.getvalue().encode()


def facts(probed: ProbeResults, beside: StudyReference, command: str) -> dict[str, Any]:
    """Return settings, rules, means and machine for JSON; scores lie in [0, 1]."""
    asked, swept = probed.request, probed.settings
    means = []
    for cut in swept.cuts:
        for k in swept.examples:
            found = probed.top1(cut, k)
            means.append(
                {
                    "cut": cut,
                    "per_class": ALL if k is None else k,
                    "images_per_class": round(probed.examples[k], 2),
                    "top1": round(found.value, 6),
                    "half_interval_95": None if found.half is None else round(found.half, 6),
                    "seeds": found.seeds,
                    "chosen": [{"seed": h.seed, "rate": h.rate, "decay": h.decay} for h in probed.chosen(cut, k)],
                }
            )
    return {
        "command": command,
        "network": asked.cell.label,
        "task": asked.task,
        "images": {"data": asked.data, "store": asked.store.digest},
        "classes": list(asked.classes),
        "chance": 1 / len(asked.classes),
        "train_pictures": len(asked.images["train"]),
        "val_pictures": len(asked.images["val"]),
        "views": len(asked.views),
        "cuts": swept.cuts,
        "examples": [ALL if k is None else k for k in swept.examples],
        "seeds": swept.seeds,
        "rates": swept.rates,
        "decays": swept.decays,
        "steps": STEPS,
        "momentum": MOMENTUM,
        "dtype": str(probed.dtype).removeprefix("torch."),
        "rules": rules(probed, beside),
        "means": means,
        "study": {"base": beside.base, "frozen": beside.frozen, "verdict": beside.verdict},
        "machine": environment.describe_machine(),
    }
