"""Studies side by side: what each says when paired inside itself, and how far they are apart.

Scores of different studies are never subtracted from each other. What is compared are differences from the base, which
are free of how hard a study's images and classes are, and base networks against the volume of their training set.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fasttransfer.core.errors import InputError
from fasttransfer.core.intervals import Estimate, difference
from fasttransfer.pipelines.views import describe_views
from fasttransfer.report.analysis.effects import FROM_BASE, PARTS, Effect
from fasttransfer.report.analysis.pairs import Score, chance, class_count
from fasttransfer.report.analysis.stuck import stuck
from fasttransfer.report.analysis.summary import Summary, summarise
from fasttransfer.study.recipe import Recipe
from fasttransfer.study.records import StudyResults

_OF_A_SPLIT = ("split", "tasks", "seeds", "device", "threads")  # what draws of one kind may differ in
# What studies from before there was such a value were trained with.
_BEFORE = {f"recipe.{name}": getattr(Recipe, name) for name in ("give_up", "schedule", "warmup", "first_init")}
_RANDOM = re.compile(r"random:\d+")


@dataclass(frozen=True)
class Line:
    """One effect at one n in each study, and how far each study is from the first one.

    `effect` is one of FROM_BASE or PARTS.
    `apart` is the study's estimate minus that of the first study (None for the first and where one lacks it), with
    the interval of `fasttransfer.report.analysis.difference`.
    """

    effect: Effect
    n: int
    estimates: tuple[Estimate | None, ...]
    apart: tuple[Estimate | None, ...]


@dataclass(frozen=True)
class Volume:
    """The base of one target of a study, trained on `per_class` images per class, on average; `stuck`: at chance."""

    study: str
    target: str
    per_class: float
    base: Estimate
    chance: float | None
    stuck: bool


@dataclass(frozen=True)
class Comparison:
    """Studies in the order given; `notes` says in sentences what keeps them from being compared, or weakens it."""

    score: Score
    names: tuple[str, ...]
    studies: tuple[StudyResults, ...]
    summaries: tuple[Summary, ...]
    lines: tuple[Line, ...]
    volumes: tuple[Volume, ...]  # empty where all were trained on equally many images per class
    notes: tuple[str, ...]


def compare(studies: Sequence[StudyResults], score: Score = "last") -> Comparison:
    """Paired differences of each study for every treatment and n, and how far they are from the first study's.

    Studies of one seed each that differ only in which random split they are of are draws of one kind, and are joined by
    `pooled` first: that is what gives them an interval. Where all are of one kind, there is that one study to be shown.

    Raises:
        InputError: nothing to compare: no study, or one only that holds one volume of images; or one named twice.
    """
    _refuse_twice(studies)
    given = len(studies)
    studies = pooled(studies)
    names = _names(studies)
    summaries = tuple(summarise(study.results, score=score, facts=study.facts) for study in studies)
    volumes = _volumes(studies, names, score)
    if given < 2 and not volumes:
        raise InputError("compare: name two studies or more")
    lines = []
    rows = [{row.n: row for row in summary.rows} for summary in summaries]
    for effect in (*FROM_BASE.values(), *PARTS):
        for n in sorted(set().union(*rows)):
            first, *others = found = tuple(of[n][effect] if n in of else None for of in rows)
            if any(found):
                apart = (None, *(difference(one, first) if one and first else None for one in others))
                lines.append(Line(effect, n, found, apart))
    notes = _notes(studies, names, summaries, lines)
    return Comparison(score, names, tuple(studies), summaries, tuple(lines), volumes, tuple(notes))


def _refuse_twice(studies: Iterable[StudyResults]) -> None:
    """Intervals between studies suppose that they share no run."""
    folders = Counter(study.folder.resolve() for study in studies)
    for study in studies:
        if folders[study.folder.resolve()] > 1:
            raise InputError(f"compare: {study.folder} is there twice: name each study once")


def pooled(studies: Sequence[StudyResults]) -> list[StudyResults]:
    """Joins studies of one seed each that differ in their random split only; seeds of the result count the splits.

    That is the paper's design. It is legitimate because a random split is drawn as a seed is: the splits are
    exchangeable, and so are their halves. Natural and man-made are not: theirs stay studies of their own.
    """
    kinds: dict[str, list[StudyResults]] = {}
    for study in studies:
        kinds.setdefault(_kind(study) or str(id(study)), []).append(study)
    return [group[0] if len(group) == 1 else _joined(group) for group in kinds.values()]


def _kind(study: StudyResults) -> str | None:
    """Equal for studies that may be joined; None for one that may not."""
    if not _RANDOM.fullmatch(str(study.study.get("split"))) or len({r.seed for r in study.results}) != 1:
        return None
    return repr(sorted(_flat({k: v for k, v in study.study.items() if k not in _OF_A_SPLIT})))


def _joined(group: Sequence[StudyResults]) -> StudyResults:
    splits = [str(study.study["split"]) for study in group]
    if twice := [split for split, times in Counter(splits).items() if times > 1]:
        raise InputError(f"compare: {twice[0]} is there twice with nothing else different: name each study once")
    results = tuple(replace(r, seed=i) for i, study in enumerate(group) for r in study.results)
    first = group[0]
    facts = {k: v for k, v in first.facts.items() if k not in ("classes", "words", "command")}
    facts["seeds_are"] = "random splits"
    facts["class_counts"] = {task: class_count(first.facts, task) for task in first.facts.get("classes", {})}
    name = " + ".join(splits)
    study = {**first.study, "split": name, "seeds": list(range(len(group)))}
    return StudyResults(first.folder.with_name(name), study, facts, results, first.environment, ())


def _names(studies: Iterable[StudyResults]) -> tuple[str, ...]:
    """The folders' names, or their paths where two are called the same."""
    studies = tuple(studies)
    short = [study.folder.name for study in studies]
    return tuple(
        name if short.count(name) == 1 else str(study.folder) for name, study in zip(short, studies, strict=True)
    )


def _volumes(studies: Sequence[StudyResults], names: Sequence[str], score: Score) -> tuple[Volume, ...]:
    found = []
    for study, name in zip(studies, names, strict=True):
        for target in sorted({r.target for r in study.results if r.treatment == "base"}):
            base = summarise(study.results, score=score, target=target).base
            images = images_per_class(study, target)
            if base is not None and images is not None:
                classes = class_count(study.facts, target)
                bases = [r for r in study.results if (r.treatment, r.target) == ("base", target)]
                lost = classes is not None and any(stuck(result, classes) for result in bases)
                found.append(Volume(name, target, images, base, chance(study.facts, target), lost))
    found.sort(key=lambda volume: volume.per_class)
    return tuple(found) if len({round(volume.per_class) for volume in found}) > 1 else ()


def images_per_class(study: StudyResults, target: str) -> float | None:
    """Training images per class of the target, on average; None where that is not recorded."""
    if (given := study.facts.get("per_class", {}).get(target)) is not None:
        return float(given)
    images, classes = study.facts.get("train_pictures", {}).get(target), class_count(study.facts, target)
    return images / classes if images and classes else None


def _notes(
    studies: Sequence[StudyResults], names: Sequence[str], summaries: Sequence[Summary], lines: Sequence[Line]
) -> list[str]:
    told = []
    for study, name in zip(studies[1:], names[1:], strict=True):
        told += _unlike(studies[0], study, names[0], name)
    if len(studies) > 1 and not any(estimate for line in lines for estimate in line.apart):
        told.append("No treatment was run at the same n in any two of these studies: nothing can be set side by side.")
    single = [name for name, summary in zip(names, summaries, strict=True) if len(summary.seeds) == 1 and summary.rows]
    if any(one.half is not None and one.seeds == 1 for line in lines for one in line.apart if one is not None):
        told.append(
            f"{_and(single)}: one seed. The interval of how far such a study is apart supposes that its seeds "
            "would vary as those of the other do: it says where one more seed of that study would fall."
        )
    elif len(single) > 1:
        if any(one.kind == "images" for line in lines for one in line.estimates if one is not None):
            told.append(
                f"One seed each in {_and(single)}: the intervals are of the validation images only, which another "
                "seed exceeds, and there is none for how far the studies are apart."
            )
        else:
            told.append(f"One seed each in {_and(single)}: no intervals, small differences may be chance.")
    return told


def _unlike(first: StudyResults, other: StudyResults, name: str, other_name: str) -> list[str]:
    """What differs between two studies beside their splits and seeds."""
    ours, theirs = ({**_BEFORE, **dict(_flat(study.study))} for study in (first, other))
    told = []
    recipe = [key for key in ours.keys() | theirs.keys() if key.startswith("recipe.") and key != "recipe.name"]
    changed = sorted(key for key in recipe if ours.get(key) != theirs.get(key))
    networks = [key for key in changed if key.startswith("recipe.geometry")]
    if networks:
        told.append(
            f"{other_name} has another network than {name} "
            f"({_network(first)} and {_network(other)}): how far they are apart is not due to the tasks alone."
        )
    trained = [key.removeprefix("recipe.") for key in changed if key not in networks]
    if trained:
        shown = ", ".join(
            f"{key}: {_shown(ours.get(f'recipe.{key}'))} and {_shown(theirs.get(f'recipe.{key}'))}"
            for key in trained[:4]
        )
        more = f" and {len(trained) - 4} more" if len(trained) > 4 else ""
        told.append(
            f"{other_name} was trained by another recipe than {name} ({shown}{more}): how far they are apart is not "
            "due to the tasks alone."
        )
    if (shown := describe_views(other.study)) != (shown_first := describe_views(first.study)):
        told.append(
            f"{other_name} was trained on other views than {name} ({shown_first} and {shown}): limited views "
            "approximate unlimited random crops, and how far the two are apart is not due to the tasks alone."
        )
    if ours.get("data") != theirs.get("data"):
        told.append(f"{other_name} and {name} are of different images: only their paired differences compare.")
    return told


def _and(names: Sequence[str]) -> str:
    return " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)


def _network(study: StudyResults) -> str:
    recipe = study.study.get("recipe")
    found = recipe.get("geometry") if isinstance(recipe, Mapping) else None
    return str(found.get("name") if isinstance(found, Mapping) else found)


def _shown(value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, list):
        return " ".join(map(_shown, value)) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _flat(table: Mapping[str, Any], above: str = "") -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat += _flat(value, f"{above}{key}.")
        else:
            flat.append((above + key, list(value) if isinstance(value, tuple | list) else value))
    return flat
