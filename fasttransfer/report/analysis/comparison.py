"""Studies side by side: the effects of each, paired inside the study, and how far they are apart.

Scores of different studies are never subtracted from each other. What is compared are differences from the base, which
are free of how hard a study's images and classes are, and base networks against the volume of their training set.
Studies are set against each other by n only where their networks have the same stages.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fasttransfer.core.errors import InputError
from fasttransfer.core.intervals import Estimate, difference
from fasttransfer.core.toml import flatten
from fasttransfer.pipelines.views import describe_views
from fasttransfer.report.analysis.effects import FROM_BASE, PARTS, WORTHS, Effect
from fasttransfer.report.analysis.summary import Summary, summarise
from fasttransfer.report.stages import Stages
from fasttransfer.study.cells import BASE
from fasttransfer.study.chance import class_count, mean_chance, recovered, stuck
from fasttransfer.study.recipe import Recipe
from fasttransfer.study.records import Score, StudyResults

_OF_A_SPLIT = ("split", "tasks", "seeds", "device", "threads")  # in which draws of one kind may differ
# The values with which studies were trained that do not record them.
_SINCE = ("give_up", "schedule", "warmup", "first_init", "optimiser", "beta2", "label_smoothing")
_BEFORE = {f"recipe.{name}": getattr(Recipe, name) for name in _SINCE}
_NETWORK = ("recipe.network", "recipe.geometry")  # what a recipe's network is recorded under
_RANDOM = re.compile(r"random:\d+")


@dataclass(frozen=True)
class Line:
    """One effect at one n in each study of a group, and how far each study is from the first one.

    `effect` is one of FROM_BASE, PARTS or WORTHS.
    `apart` is the study's estimate minus that of the first study (None for the first and where one lacks it), with
    the interval of `fasttransfer.report.analysis.difference`.
    """

    effect: Effect
    n: int
    estimates: tuple[Estimate | None, ...]
    apart: tuple[Estimate | None, ...]


@dataclass(frozen=True)
class StudyGroup:
    """The studies whose networks have the same stages, so that n is the same cut in each.

    Attributes:
        stages: their names, where a study records them.
        members: the studies' places in the comparison; the estimates of `lines` are in their order.
    """

    stages: Stages
    members: tuple[int, ...]
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Volume:
    """The base of one target of a study, trained on `per_class` images per class, on average."""

    study: str
    target: str
    per_class: float
    base: Estimate
    chance: float | None
    stuck: bool  # at chance


@dataclass(frozen=True)
class Comparison:
    """Studies in their order; `notes` are sentences on what weakens or prevents their comparison."""

    score: Score
    names: tuple[str, ...]
    studies: tuple[StudyResults, ...]
    summaries: tuple[Summary, ...]
    groups: tuple[StudyGroup, ...]
    volumes: tuple[Volume, ...]  # empty where all were trained on equally many images per class
    notes: tuple[str, ...]

    @property
    def by_name(self) -> dict[str, StudyResults]:
        """The studies by name, in their order."""
        return dict(zip(self.names, self.studies, strict=True))

    @property
    def lines(self) -> tuple[Line, ...]:
        """The lines of all groups."""
        return tuple(line for group in self.groups for line in group.lines)

    @property
    def parts(self) -> list[Comparison]:
        """The comparison of each group by itself, without notes."""
        parts = []
        for group in self.groups:
            names = tuple(self.names[i] for i in group.members)
            studies = tuple(self.studies[i] for i in group.members)
            summaries = tuple(self.summaries[i] for i in group.members)
            volumes = _varied([volume for volume in self.volumes if volume.study in names])
            own = replace(group, members=tuple(range(len(names))))
            parts.append(Comparison(self.score, names, studies, summaries, (own,), volumes, ()))
        return parts


def compare(studies: Sequence[StudyResults], score: Score = "last") -> Comparison:
    """Return the effects of each study for every n, and how far they are from those of the first of the same stages.

    Studies of one seed each that differ only in which random split they are of are draws of one kind, and `pooled`
    joins them first: that is what gives them an interval. Where all are of one kind, the result has that one study.

    Raises:
        InputError: nothing to compare: no study, or one only that holds one volume of images; or one named twice.
    """
    # Intervals between studies suppose that they share no run.
    _refuse_repeats([str(study.folder.resolve()) for study in studies], [str(study.folder) for study in studies])
    joined = pooled(studies)
    names = _names(joined)
    summaries = tuple(summarise(study.results, score=score, facts=study.facts) for study in joined)
    volumes = _volumes(dict(zip(names, joined, strict=True)), score)
    if len(studies) < 2 and not volumes:
        raise InputError("compare: name two studies or more")
    groups = tuple(
        StudyGroup(stages, members, tuple(_lines([summaries[i] for i in members])))
        for stages, members in by_network(joined)
    )
    notes = _notes(joined, names, summaries, groups)
    return Comparison(score, names, tuple(joined), summaries, groups, volumes, tuple(notes))


def by_network(studies: Sequence[StudyResults]) -> list[tuple[Stages, tuple[int, ...]]]:
    """Return the stages of each network among `studies`, with names where a study has them, and the studies' places."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for i, study in enumerate(studies):
        groups.setdefault(Stages.of(study.facts).network, []).append(i)
    named = [next((s for i in m if (s := Stages.of(studies[i].facts)).names), Stages()) for m in groups.values()]
    return [(stages, tuple(members)) for stages, members in zip(named, groups.values(), strict=True)]


def _lines(summaries: Sequence[Summary]) -> list[Line]:
    lines = []
    rows = [{row.n: row for row in summary.rows} for summary in summaries]
    for effect in (*FROM_BASE.values(), *PARTS, *WORTHS):
        for n in sorted(set().union(*rows)):
            first, *others = estimates = tuple(of[n][effect] if n in of else None for of in rows)
            if any(estimates):
                apart = (None, *(difference(one, first) if one and first else None for one in others))
                lines.append(Line(effect, n, estimates, apart))
    return lines


def _refuse_repeats(keys: Sequence[str], names: Sequence[str], what: str = "") -> None:
    for key, name in zip(keys, names, strict=True):
        if keys.count(key) > 1:
            raise InputError(f"compare: {name} is there twice{what}: name each study once")


def pooled(studies: Sequence[StudyResults]) -> list[StudyResults]:
    """Join studies of one seed each that differ in their random split only; seeds of the result count the splits.

    That is the paper's design. It is legitimate because a random split is drawn as a seed is: the splits are
    exchangeable, and so are their halves. Natural and man-made are not: theirs stay studies of their own.
    """
    kinds: dict[str, list[StudyResults]] = {}
    for study in studies:
        kinds.setdefault(_kind(study) or str(id(study)), []).append(study)
    return [group[0] if len(group) == 1 else _joined(group) for group in kinds.values()]


def _kind(study: StudyResults) -> str | None:
    """Return what is equal for studies that may be joined; None for one that may not."""
    if not _RANDOM.fullmatch(str(study.study.get("split"))) or len({r.seed for r in study.results}) != 1:
        return None
    return repr(sorted(flatten({k: v for k, v in study.study.items() if k not in _OF_A_SPLIT}).items()))


def _joined(group: Sequence[StudyResults]) -> StudyResults:
    splits = [str(study.study["split"]) for study in group]
    _refuse_repeats(splits, splits, " with nothing else different")
    results = tuple(replace(r, seed=i) for i, study in enumerate(group) for r in study.results)
    first = group[0]
    facts = {k: v for k, v in first.facts.items() if k not in ("classes", "words", "command")}
    facts["seeds_are"] = "random splits"
    facts["class_counts"] = {task: class_count(first.facts, task) for task in first.facts.get("classes", {})}
    name = " + ".join(splits)
    study = {**first.study, "split": name, "seeds": list(range(len(group)))}
    return StudyResults(first.folder.with_name(name), study, facts, results, first.environment, ())


def _names(studies: Sequence[StudyResults]) -> tuple[str, ...]:
    """Return the folders' names, or their paths where two have one name."""
    short = [study.folder.name for study in studies]
    return tuple(str(study.folder) if short.count(study.folder.name) > 1 else study.folder.name for study in studies)


def _volumes(studies: Mapping[str, StudyResults], score: Score) -> tuple[Volume, ...]:
    volumes = []
    for name, study in studies.items():
        bases = [result for result in study.results if result.treatment == BASE]
        for target, base in summarise(bases, score=score).bases.items():
            images, classes = images_per_class(study, target), class_count(study.facts, target)
            if images is not None:
                is_stuck = any(stuck(r, classes) for r in bases if r.target == target)
                volumes.append(Volume(name, target, images, base, mean_chance(study.facts, [target]), is_stuck))
    return _varied(sorted(volumes, key=lambda volume: volume.per_class))


def _varied(volumes: Sequence[Volume]) -> tuple[Volume, ...]:
    """Return `volumes` if they differ in their images per class, else none."""
    return tuple(volumes) if len({round(volume.per_class) for volume in volumes}) > 1 else ()


def images_per_class(study: StudyResults, target: str) -> float | None:
    """Return the training images per class of the target, on average; None where that is not recorded."""
    if (limit := study.facts.get("per_class", {}).get(target)) is not None:
        return float(limit)
    images, classes = study.facts.get("train_pictures", {}).get(target), class_count(study.facts, target)
    return images / classes if images and classes else None


def runs_by_volume(
    studies: Sequence[StudyResults], score: Score = "last"
) -> dict[str, dict[int, list[tuple[float, bool]]]]:
    """Return the finished bases of `studies` by training images per class.

    Returns:
        task -> images per class -> (top-1, whether it is no better than chance), tasks and images ascending.
    """
    runs: dict[str, dict[int, list[tuple[float, bool]]]] = {}
    for study in studies:
        for result in study.results:
            top1, images = result.score(score), images_per_class(study, result.target)
            if result.treatment == BASE and top1 is not None and images is not None:
                # Where every limit is a target of its own, as in the published results, they are one line.
                task = "all" if study.facts.get("per_class") else result.target
                classes = class_count(study.facts, result.target)
                lost = classes is not None and stuck(result, classes) and not recovered(result, classes)
                runs.setdefault(task, {}).setdefault(round(images), []).append((top1, lost or bool(result.reason)))
    return {task: dict(sorted(runs_of.items())) for task, runs_of in sorted(runs.items())}


def _notes(
    studies: Sequence[StudyResults], names: Sequence[str], summaries: Sequence[Summary], groups: Sequence[StudyGroup]
) -> list[str]:
    notes = []
    if len(groups) > 1:
        each = "; ".join(_and([names[i] for i in group.members]) for group in groups)
        notes.append(
            f"The networks have different stages ({each}), so that n of one is not n of another: they are listed apart."
        )
    for group in groups:
        first, *others = group.members
        notes += [note for i in others for note in _unlike(studies[first], studies[i], names[first], names[i])]
    lines = [line for group in groups for line in group.lines]
    apart = [one for line in lines for one in line.apart if one is not None]
    if any(len(group.members) > 1 for group in groups) and not apart:
        notes.append("No treatment was run at the same n in any two of these studies: nothing can be set side by side.")
    single = [name for name, summary in zip(names, summaries, strict=True) if len(summary.seeds) == 1 and summary.rows]
    if single and any(
        one.half is not None and one.seeds == 1 for line in lines for one in line.apart if one is not None
    ):
        notes.append(
            f"{_and(single)}: one seed. The interval of how far such a study is apart supposes that its seeds "
            "would vary as those of the other do: it says where one more seed of that study would fall."
        )
    elif len(single) > 1:
        if any(one.kind == "images" for line in lines for one in line.estimates if one is not None):
            notes.append(
                f"One seed each in {_and(single)}: the intervals are of the validation images only, which another "
                "seed exceeds, and there is none for how far the studies are apart."
            )
        else:
            notes.append(f"One seed each in {_and(single)}: no intervals, small differences may be chance.")
    return notes


def _unlike(first: StudyResults, other: StudyResults, name: str, other_name: str) -> list[str]:
    """Return sentences on what differs between two studies beside their splits and seeds."""
    ours, theirs = ({**_BEFORE, **flatten(study.study)} for study in (first, other))
    notes = []
    recipe = [key for key in ours.keys() | theirs.keys() if key.startswith("recipe.") and key != "recipe.name"]
    changed = sorted(key for key in recipe if ours.get(key) != theirs.get(key))
    networks = [key for key in changed if key.startswith(_NETWORK)]
    if networks:
        notes.append(
            f"{other_name} has another network than {name} "
            f"({network_name(first)} and {network_name(other)}): how far they are apart is not due to the tasks alone."
        )
    if trained := [key for key in changed if key not in networks]:
        values = ", ".join(
            f"{key.removeprefix('recipe.')}: {_shown(ours.get(key))} and {_shown(theirs.get(key))}"
            for key in trained[:4]
        )
        more = f" and {len(trained) - 4} more" if len(trained) > 4 else ""
        notes.append(
            f"{other_name} was trained by another recipe than {name} ({values}{more}): how far they are apart is not "
            "due to the tasks alone."
        )
    views, other_views = describe_views(first.study), describe_views(other.study)
    if views != other_views:
        notes.append(
            f"{other_name} was trained on other views than {name} ({views} and {other_views}): limited views "
            "approximate unlimited random crops, and how far the two are apart is not due to the tasks alone."
        )
    if ours.get("data") != theirs.get("data"):
        notes.append(f"{other_name} and {name} are of different images: only their paired differences compare.")
    return notes


def _and(names: Sequence[str]) -> str:
    return " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)


def network_name(study: StudyResults) -> str:
    """Return the name of the network that the study trained; "" where that is not recorded."""
    flat = flatten(study.study)
    keys = [f"{key}{name}" for key in _NETWORK for name in (".name", "")]
    return next((str(flat[key]) for key in keys if key in flat), "")


def _shown(value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, list):
        return " ".join(map(_shown, value)) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
