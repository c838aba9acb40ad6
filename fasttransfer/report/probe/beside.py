"""The study's own results on the task of a probe: the base, and the networks with the same layers frozen."""

from __future__ import annotations

from dataclasses import dataclass, field

from fasttransfer.features.network_features import FeatureRequest
from fasttransfer.report.verdict import verdict
from fasttransfer.study import records
from fasttransfer.study.cells import LAYERS, TASKS


@dataclass(frozen=True)
class StudyReference:
    """The results to hold a probe against; only the verdict where the images are not the study's.

    Attributes:
        base: name and top-1 of the network that was trained on the task from scratch.
        frozen: cut -> name and top-1 of the network with as many frozen layers of the probed one.
        synthetic: whether the images are.
        verdict: whether the bases had finished learning, in a sentence; None where that cannot be said yet.
    """

    base: tuple[str, float] | None = None
    frozen: dict[int, tuple[str, float]] = field(default_factory=dict)
    synthetic: bool = False
    verdict: str | None = None


def study_reference(asked: FeatureRequest) -> StudyReference:
    """Return the results of the study of `asked` on its task, of the seed of the network, by the last check."""
    recorded = records.read_results(asked.folder)
    judged = verdict(recorded)
    sentence = None if judged is None else judged.text
    if asked.task not in TASKS:
        return StudyReference(verdict=sentence)
    done = {
        r.name: r.last_top1
        for r in recorded.results
        if r.seed == asked.cell.seed and r.state == "done" and r.last_top1 is not None
    }
    base = f"base{asked.task}"
    frozen = {}
    if asked.cell.treatment == "base":
        for n in LAYERS:
            name = f"{asked.cell.target}{n}{asked.task}"
            if name in done:
                frozen[n] = name, done[name]
    return StudyReference(
        (base, done[base]) if base in done else None, frozen, bool(recorded.facts.get("synthetic")), sentence
    )
