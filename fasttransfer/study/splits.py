"""The classes of a study, split into the tasks A and B.

`natural-manmade` and `random:SEED` are the paper's splits; a TOML file holds any other. `verify` compares the halves of
ILSVRC12 with the MD5s of the validation lists that were published with the 2014 study.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fasttransfer.core.errors import InputError
from fasttransfer.core.text import escape_name, unescape_name
from fasttransfer.pipelines.class_folders import compose_name
from fasttransfer.pipelines.ilsvrc12 import ilsvrc12, ilsvrc12_val_labels
from fasttransfer.study.configuration import NATURAL_MANMADE, TWO_DATA_SETS

FORMS = f"{NATURAL_MANMADE}, random:SEED (as random:0), or the path of a .toml file with A = [...] and B = [...]"

_FILE_FORM = 'name = "mine", A = ["cat", "dog"], B = ["car", "bus"]'
_MIN_CLASSES = 2  # per task: with one there is nothing to tell apart
_TASKS = ("A", "B")

PUBLISHED = {
    "0A": "2f10009e20d77eb7007cf70674958b94",
    "0B": "cce39b383d681345c873faf2c0c28d33",
    "1A": "9ab48b6420504e32ff4498e7d8569f8b",
    "1B": "57522f5e2aa69547846089f5197c8a6b",
    "2A": "03d05b6565ab9176baccdd05d746bfd1",
    "2B": "18de8b37378e07e60dc602b6130eeeb2",
    "3A": "46086440ddde128f169f23331998499d",
    "3B": "e5f9f0895fd0d49a8ac0b804ec891282",
    "natural": "4fb63c72229ba07106a558127192cb9f",
    "man-made": "f03be5732fb6bc7928ee53397b043613",
}
"""Half -> MD5 of its validation list, as published with the study."""


@dataclass(frozen=True)
class Split:
    """The classes of each task in label order: the label of a class in its task is its index here."""

    name: str
    a: tuple[str, ...]
    b: tuple[str, ...]

    @property
    def tasks(self) -> dict[str, tuple[str, ...]]:
        """Return the classes of task "A" and of "B"."""
        return {"A": self.a, "B": self.b}


def make_split(spec: str, classes: Sequence[str]) -> Split:
    """Split `classes`, which are in label order, as `spec` says.

    * `natural-manmade`: A = natural, B = man-made, for ILSVRC12 classes (by wnid) and the built-in ones.
    * `random:SEED`: A = a random half, B = the rest (one more when their number is odd). The draw is the paper's:
      NumPy's legacy generator, seeded with the list `[SEED]`, chooses without replacement.
    * `FILE.toml`: lists `A` and `B` of class names, and perhaps a `name`. Classes it does not name are left out.

    Raises:
        InputError: `spec` has another form, the file is bad, a class is unknown or in both tasks, or a task has fewer
            than two classes.
    """
    if spec == NATURAL_MANMADE:
        return _natural_manmade(classes)
    if spec.startswith("random:"):
        return _random(spec, classes)
    if spec.lower().endswith(".toml"):
        return _from_file(Path(spec), classes)
    raise InputError(f"split {spec!r}: not known: say {FORMS}")


def join_data_sets(a: Sequence[str], b: Sequence[str]) -> Split:
    """Return the tasks of two data sets: all classes of each, which may have the same names.

    Raises:
        InputError: one has fewer than two classes.
    """
    for option, classes in (("--data-a", a), ("--data-b", b)):
        if len(classes) < _MIN_CLASSES:
            raise InputError(f"{option}: has {len(classes)} classes, at least {_MIN_CLASSES} are needed")
    return Split(TWO_DATA_SETS, tuple(a), tuple(b))


def limit_classes(split: Split, k: int, seed: int) -> Split:
    """Return the first `k` classes of each task in an order drawn from `seed`, sorted by label again.

    The choice for a smaller `k` is part of that for a larger one.

    Raises:
        InputError: a task has fewer than `k` classes, or `k` is less than two.
    """
    if k < _MIN_CLASSES:
        raise InputError(f"{k} classes per task: too few to tell apart: say at least {_MIN_CLASSES}")
    from fasttransfer.core.randomness import key, permutation  # PyTorch, which no other function here needs

    chosen = {}
    for task, names in split.tasks.items():
        if k > len(names):
            raise InputError(
                f"{k} classes per task: task {task} of {split.name} has {len(names)}: say at most that many"
            )
        order = permutation(key(seed, "classes", task), len(names)).tolist()
        chosen[task] = tuple(names[index] for index in sorted(order[:k]))
    return Split(split.name, chosen["A"], chosen["B"])


def list_splits() -> list[tuple[str, int, int, str]]:
    """Return the splits that need no file: spec, classes in A, classes in B (of ILSVRC12 or built in), description."""
    wnids = list(load_ilsvrc12_words())
    return [
        (spec, len(split.a), len(split.b), about)
        for spec, classes, about in (
            (NATURAL_MANMADE, wnids, "ILSVRC12: natural things and man-made ones, as in the paper"),
            (NATURAL_MANMADE, list(_builtin_sides()), "the built-in images: the same question"),
            ("random:SEED", wnids, "random halves; random:0 to random:3 are the paper's"),
        )
        for split in [make_split(spec.replace("SEED", "0"), classes)]
    ]


def show(split: Split, words: Mapping[str, str]) -> list[tuple[str, int, str, str]]:
    """Return the task, label, name and words ("" if unknown) of each class.

    `words` are those of a listing, of a store, or `load_ilsvrc12_words()`.
    """
    return [
        (task, label, name, words.get(name, ""))
        for task, names in split.tasks.items()
        for label, name in enumerate(names)
    ]


def load_ilsvrc12_words() -> dict[str, str]:
    """Return wnid -> words of the 1000 ILSVRC12 classes, in label order."""
    return {synset.wnid: synset.words for synset in ilsvrc12()}


def export(split: Split, words: Mapping[str, str] | None = None) -> str:
    """Return the split as the text of a TOML file that `make_split` reads; `words` become comments."""
    text = f"name = {_quote(split.name)}\n"
    for task, names in split.tasks.items():
        text += f"\n{task} = [\n"
        for name in names:
            remark = f"  # {_one_line(words[name])}" if words and words.get(name) else ""
            text += f"  {_quote(name)},{remark}\n"
        text += "]\n"
    return text


def export_validation_list(half: Sequence[str]) -> str:
    """Return the paper's list of a half: "<file> <new label>" for each ILSVRC12 validation image of its classes.

    Args:
        half: wnids in label order, e.g. `split.a`.

    Raises:
        InputError: a name is not an ILSVRC12 class.
    """
    old = {synset.wnid: label for label, synset in enumerate(ilsvrc12())}
    if unknown := [name for name in half if name not in old]:
        raise InputError(f"{_few(unknown)}: not in ILSVRC12, whose validation list this is: name classes by wnid")
    new = {old[name]: label for label, name in enumerate(half)}
    return "".join(
        f"ILSVRC2012_val_{number:08d}.JPEG {new[label]}\n"
        for number, label in enumerate(ilsvrc12_val_labels(), 1)
        if label in new
    )


def hash_validation_list(half: Sequence[str]) -> str:
    """Return the MD5 of `export_validation_list(half)`, in hexadecimal; ten were published with the study."""
    return hashlib.md5(export_validation_list(half).encode(), usedforsecurity=False).hexdigest()


def verify() -> list[tuple[str, str, str]]:
    """Return each published half with its published MD5 and that of the split that `make_split` makes."""
    wnids = list(load_ilsvrc12_words())
    halves: dict[str, tuple[str, ...]] = {}
    for seed in range(4):
        split = make_split(f"random:{seed}", wnids)
        halves |= {f"{seed}A": split.a, f"{seed}B": split.b}
    paper = make_split(NATURAL_MANMADE, wnids)
    halves |= {"natural": paper.a, "man-made": paper.b}
    return [(half, published, hash_validation_list(halves[half])) for half, published in PUBLISHED.items()]


def _natural_manmade(classes: Sequence[str]) -> Split:
    sides = {synset.wnid: synset.side for synset in ilsvrc12()} | _builtin_sides()
    unknown = [name for name in classes if name not in sides]
    own = f"write a split file ({_FILE_FORM}) and name it with --split FILE.toml, or say --split random:0"
    if len(unknown) == len(classes):
        raise InputError(
            f"{NATURAL_MANMADE}: none of the {len(classes)} classes ({_few(unknown)}) is of ILSVRC12 "
            f"or built in, so that nobody has said which are natural: {own}"
        )
    if unknown:
        raise InputError(f"{NATURAL_MANMADE}: does not know {_few(unknown)}: {own}")
    parts = {side: tuple(name for name in classes if sides[name] == side) for side in ("natural", "man-made")}
    for side, names in parts.items():
        if len(names) < _MIN_CLASSES:
            raise InputError(
                f"{NATURAL_MANMADE}: of the {len(classes)} classes {len(names)} on the {side} side, at least "
                f"{_MIN_CLASSES} are needed: add classes, or {own}"
            )
    return Split(NATURAL_MANMADE, parts["natural"], parts["man-made"])


def _builtin_sides() -> dict[str, str]:
    from fasttransfer.pipelines.synthetic import SIDES  # here, because it imports the whole renderer

    return dict(SIDES)


def _random(spec: str, classes: Sequence[str]) -> Split:
    digits = spec.removeprefix("random:")
    if re.fullmatch(r"[0-9]{1,10}", digits) is None or int(digits) >= 2**32:
        raise InputError(f"split {spec!r}: the seed is a whole number from 0 to 4294967295, as in random:0")
    if len(classes) < 2 * _MIN_CLASSES:
        raise InputError(f"split {spec!r}: {len(classes)} classes: at least {2 * _MIN_CLASSES} are needed, two a task")
    half = np.random.RandomState([int(digits)]).choice(np.arange(len(classes)), len(classes) // 2, replace=False)
    a = {classes[label] for label in half}
    return Split(f"random:{int(digits)}", *_in_order(classes, a, set(classes) - a))


def _from_file(path: Path, classes: Sequence[str]) -> Split:
    table = _read(path)
    if unknown := sorted(table.keys() - {"name", *_TASKS}):
        raise InputError(f"{path}: does not know {_few(unknown)}: a split file has A, B and perhaps name")
    name = table.get("name", path.stem)
    if not isinstance(name, str) or not name.strip():
        raise InputError(f'{path}: name is not text: write name = "mine" or leave it out')
    # macOS spells the é of a folder's name otherwise than an editor.
    spelled = {compose_name(name): name for name in classes} | {name: name for name in classes}
    a, b = (
        {spelled.get(name) or spelled.get(compose_name(name), name) for name in _task_classes(path, table, task)}
        for task in _TASKS
    )
    if both := sorted(a & b):
        raise InputError(f"{path}: {_few(both)} in both tasks: a class belongs to one")
    if unknown := sorted((a | b) - set(classes)):
        raise InputError(
            f"{path}: names {_few(unknown)}, which the images do not have (they have {_few(list(classes))}): correct it"
        )
    return Split(name.strip(), *_in_order(classes, a, b))


def _in_order(classes: Sequence[str], a: set[str], b: set[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return tuple(name for name in classes if name in a), tuple(name for name in classes if name in b)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such split file: write one ({_FILE_FORM}) or say {FORMS}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({(error.strerror or str(error)).lower()}): name a file") from error
    except ValueError as error:  # bad TOML or bad UTF-8
        raise InputError(f"{path}: is not TOML ({error}): write it as {_FILE_FORM}, a line each") from error


def _task_classes(path: Path, table: Mapping[str, Any], task: str) -> set[str]:
    names = table.get(task)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{path}: {task} is not a list of class names: write it as {_FILE_FORM}, a line each")
    names = [unescape_name(name) for name in names]
    if twice := sorted(name for name, count in Counter(names).items() if count > 1):
        raise InputError(f"{path}: {_few(twice)} twice in {task}: name each class once")
    if len(names) < _MIN_CLASSES:
        raise InputError(f"{path}: {task} has {len(names)} classes: name at least {_MIN_CLASSES}")
    return set(names)


def _quote(text: str) -> str:
    # TOML's basic strings have JSON's escapes, but must escape DEL too.
    return json.dumps(escape_name(text), ensure_ascii=False).replace("\x7f", "\\u007f")


def _one_line(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text)


def _few(names: Sequence[str], most: int = 3) -> str:
    first = ", ".join(names[:most])
    return first if len(names) <= most else f"{first} and {len(names) - most} more"
