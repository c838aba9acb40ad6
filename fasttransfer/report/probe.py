"""The results of a probe: a table for the terminal, and files in the folder of the study: CSV, JSON and a figure."""

from __future__ import annotations

import csv
import io
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.console import Group, RenderableType
from rich.text import Text

from fasttransfer.core.text import json_text
from fasttransfer.features.network_features import FeatureRequest
from fasttransfer.probe.examples import BATCH, FOLDS, MANY, STEPS
from fasttransfer.probe.heads import MOMENTUM
from fasttransfer.probe.sweep import Head, ProbeResults, choose_head
from fasttransfer.report import drawing
from fasttransfer.report.attempts import raise_errors_last
from fasttransfer.report.drawing import Style
from fasttransfer.report.files import write_files
from fasttransfer.report.numbers import count, half, per_cent, plain
from fasttransfer.report.stages import Stages
from fasttransfer.report.svg import INK, settings
from fasttransfer.report.table import packed, stage_columns
from fasttransfer.report.verdict import verdict
from fasttransfer.study import environment, records
from fasttransfer.study.cells import BASE, TASKS

_MARKERS = ("o", "s", "^", "D", "v", "P", "X")  # of cuts


@dataclass(frozen=True)
class StudyReference:
    """The study's own results on the task of a probe; only the verdict where the images are not the study's.

    Attributes:
        base: name and top-1 of the network that was trained on the task from scratch.
        frozen: cut -> name and top-1 of the network with as many frozen layers of the probed one.
        synthetic: whether the images are.
        verdict: whether the bases had finished learning, in a sentence; None where that cannot be said yet.
        stages: of the network, by name where the study records them.
    """

    base: tuple[str, float] | None = None
    frozen: dict[int, tuple[str, float]] = field(default_factory=dict)
    synthetic: bool = False
    verdict: str | None = None
    stages: Stages = field(default_factory=Stages)


def study_reference(asked: FeatureRequest) -> StudyReference:
    """Return the results of the study of `asked` on its task, of the seed of the network, by the last check."""
    recorded = records.read_results(asked.folder)
    judged = verdict(recorded)
    sentence = None if judged is None else judged.text
    stages = Stages.of(recorded.facts)
    if asked.task not in TASKS:
        return StudyReference(verdict=sentence, stages=stages)
    base, frozen = None, {}
    for result in recorded.results:
        is_asked = (result.seed, result.target, result.state) == (asked.cell.seed, asked.task, "done")
        if not is_asked or result.last_top1 is None:
            continue
        if result.treatment == BASE:
            base = result.name, result.last_top1
        elif result.treatment in ("selffer", "transfer") and asked.cell.name == f"base{result.source}":
            frozen[result.n] = result.name, result.last_top1
    return StudyReference(base, frozen, bool(recorded.facts.get("synthetic")), sentence, stages)


def probe_table(probed: ProbeResults, beside: StudyReference) -> RenderableType:
    """Return a table for rich: top-1 in per cent with its interval over seeds, below it the usual rate and decay."""
    asked, swept = probed.request, probed.settings
    digits = 0 if len(asked.images["val"]) < 200 else 1
    columns: dict[str, list[Text]] = {}
    for k in swept.examples:
        means = {cut: probed.top1(cut, k) for cut in swept.cuts}
        columns[_examples_title(probed, k)] = [
            _two_lines(per_cent(mean.value, digits) + (half(mean, digits) if mean.half else ""), _usual(probed, cut, k))
            for cut, mean in means.items()
        ]
    if beside.frozen:
        others = [beside.frozen.get(cut) for cut in swept.cuts]
        columns["study"] = [_two_lines(per_cent(one[1], digits), one[0]) if one else Text("-") for one in others]
    tables = packed(stage_columns(beside.stages, swept.cuts, "cut"), columns, padding=(0, 0, 0, 0))
    head = Text(
        f"Softmax regressions on features of {asked.cell.label}: top-1 on {len(asked.images['val']):,} validation "
        f"images of {asked.task}, by training images per class; chance {per_cent(1 / len(asked.classes), digits)} %"
    )
    first = [Text(plain(beside.verdict))] if beside.verdict else []
    return Group(*first, head, *tables, Text("\n".join(_rules(probed, beside))))


def _two_lines(text: str, below: str) -> Text:
    return Text.assemble(text, "\n", (below, "dim"))


def _examples_title(probed: ProbeResults, k: int | None) -> str:
    """Return the heading of `k` examples of each class; for None, all, with their mean number."""
    return str(k) if k is not None else f"all ({probed.examples[None]:.0f})"


def _usual(probed: ProbeResults, cut: int, k: int | None) -> str:
    """Return the learning rate and decay that most seeds chose."""
    (rate, decay), _ = Counter((head.rate, head.decay) for head in probed.chosen(cut, k)).most_common(1)[0]
    return f"{rate:g}, {_short(decay)}"


def _short(number: float) -> str:
    """Return a number in few characters: 0.0001 -> "1e-4"."""
    return (f"{number:.0e}" if 0 < number < 0.01 and float(f"{number:.0e}") == number else f"{number:g}").replace(
        "e-0", "e-"
    )


def _rules(probed: ProbeResults, beside: StudyReference) -> list[str]:
    """Return sentences on how the numbers came about."""
    swept = probed.settings
    seeds = count(len(swept.seeds), "seed")
    interval = ", ± half the 95 % interval over seeds" if len(swept.seeds) > 1 else "; one seed: no interval"
    lines = [
        f"Mean over {seeds}{interval}: other examples, other batches, the same network and validation images.",
        f"Below: learning rate and decay chosen most often, for each seed among {count(len(swept.pairs), 'head')} by "
        f"top-1 on held-out training examples: each of up to {FOLDS} parts left out once, from {MANY} per class on one "
        "of them.",
        "Validation images choose nothing.",
    ]
    if 1 in swept.examples:
        rate, decay = swept.pairs[choose_head(swept.pairs, None, None)]
        lines.append(f"Of 1 example none can be held out: the middle of the lists, {rate:g} and {_short(decay)}.")
    precision = "bfloat16" if probed.dtype == torch.bfloat16 else "float32"
    lines.append(
        f"{STEPS} steps of momentum {MOMENTUM:g}, batches of {BATCH} or more, {precision}; features centred and "
        "brought to length 1 by the examples learned from."
    )
    if beside.frozen:
        word = beside.stages.word
        lines.append(f"study: the study's own network with these {word}s frozen, the others trained on all images.")
    if beside.synthetic:
        lines.append("The images are synthetic.")
    return lines


@raise_errors_last()
def write_probe(probed: ProbeResults, beside: StudyReference, folder: Path, command: str) -> None:
    """Write heads.csv, probe.json and accuracy.svg, .pdf, .png into `folder`; `command` makes them again.

    The same heads give the same bytes of CSV, SVG and PDF.

    Raises:
        InputError: the folder cannot be written.
        ExceptionGroup: the figure could not be drawn; the rest is written.
    """
    texts = {"heads.csv": heads_csv(probed, beside.stages)}
    texts |= {"probe.json": json_text(facts(probed, beside, command)) + "\n"}
    write_files(folder, {"accuracy": partial(probe_accuracy, probed, beside)}, texts)


def heads_csv(probed: ProbeResults, stages: Stages) -> str:
    """Return a row for each head, trained on all its examples, see `fasttransfer.probe.sweep.Head`.

    The last column is the name of the stage that the cut leaves; empty where the study does not record it.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow((*Head._fields, "stage"))
    scored = ("held_out_top1", "held_out_loss", "val_top1", "val_loss")
    for head in probed.heads:
        found = head._asdict()
        scores = {name: "" if found[name] is None else f"{found[name]:.6f}" for name in scored}
        others = {"per_class": _all_or(head.per_class), "chosen": int(head.chosen)}
        writer.writerow([*(found | scores | others).values(), stages.name(head.cut)])
    return out.getvalue()


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
                    "stage": beside.stages.name(cut),
                    "per_class": _all_or(k),
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
        "examples": [_all_or(k) for k in swept.examples],
        "seeds": swept.seeds,
        "rates": swept.rates,
        "decays": swept.decays,
        "steps": STEPS,
        "momentum": MOMENTUM,
        "dtype": str(probed.dtype).removeprefix("torch."),
        "rules": _rules(probed, beside),
        "means": means,
        "study": {"base": beside.base, "frozen": beside.frozen, "verdict": beside.verdict},
        "machine": environment.describe_machine(),
    }


def _all_or(k: int | None) -> int | str:
    return "all" if k is None else k


@settings()
def probe_accuracy(probed: ProbeResults, beside: StudyReference) -> Figure:
    """Draw means over seeds with their 95 % intervals, and every seed a point; chance and the study's base across."""
    figure, (ax,) = drawing.panels(1)
    asked = probed.request
    ax.set_title(f"{asked.cell.name}, heads on {asked.task}, {len(asked.classes)} classes")
    ax.set_ylabel("validation top-1, %")
    ax.set_xlabel("training images per class")
    stages, cuts = beside.stages, probed.settings.cuts
    # A cut of a network of few always has its marker; of many, neighbours differ.
    places = [cut - 1 if stages.cuts <= len(_MARKERS) else i for i, cut in enumerate(cuts)]
    looks = {
        cut: Style(f"cut {stages.label(cut)}", drawing.cut_colour(cut, stages.cuts), _MARKERS[place % len(_MARKERS)])
        for cut, place in zip(cuts, places, strict=True)
    }
    step = 1.03 ** min(1.0, len(_MARKERS) / len(cuts))  # many cuts share the room that seven have
    for i, (cut, style) in enumerate(looks.items()):
        spread = step ** (i - (len(cuts) - 1) / 2)  # beside each other, not on top
        at = {k: images * spread for k, images in sorted(probed.examples.items(), key=lambda item: item[1])}
        means = {k: probed.top1(cut, k) for k in at}
        seeds = [(x, head.val_top1) for k, x in at.items() for head in probed.chosen(cut, k)]
        drawing.line(ax, [(at[k], mean.value) for k, mean in means.items()], style, seeds)
        for k, mean in means.items():
            drawing.interval(ax, at[k], mean, style.colour)
    labels = {images: f"{images:,.0f}" if k else f"all ({images:,.0f})" for k, images in probed.examples.items()}
    drawing.logarithmic_axis(ax, labels)
    drawing.chance(ax, 1 / len(asked.classes))
    styles = [looks[cut] for cut in drawing.some_cuts(sorted(cuts), 2 * len(_MARKERS))]
    if beside.base is not None:
        name, top1 = beside.base
        drawing.across(ax, top1)
        styles.append(Style(f"{name}, whole network", INK, swatch="dashed"))
    ax.set_ylim(bottom=0)
    drawing.grid(ax)
    drawing.legend(figure, styles)
    return figure
