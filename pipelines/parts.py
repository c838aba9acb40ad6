"""Find the training, the validation and the test part of a source by the names that people give their folders.

A name such as `train` may be that of a class as well (of vehicles). It is a part where class folders lie inside; where
a folder may be either, the source is refused: networks trained on classes called train, val and test mean nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import NamedTuple

from fasttransfer.core.errors import InputError
from fasttransfer.pipelines.file_tree import Tree

_WORDS = {"train": "train|training", "val": "val|valid|validation|dev|eval", "test": "test|testing"}
_PART = re.compile(
    r"(?:ilsvrc2012_img_)?(?:"
    + "|".join(f"(?P<{part}>{words})" for part, words in _WORDS.items())
    + r")(?:[ _-]?(?:set|data|images|imgs|part|split|v\d+))*",
    re.IGNORECASE,
)
# Words that are as likely the name of a class where other classes lie beside.
_ALSO_CLASSES = ("train", "training", "valid", "dev", "eval", "testing")


class Parts(NamedTuple):
    """The folders of a source's parts; they lie in the folder `base`, which is "" or ends with "/"."""

    base: str
    train: str | None  # None: the classes lie directly in `base`
    val: str | None
    test: tuple[str, ...]

    def prefix(self, name: str | None) -> str:
        """Return the prefix of the paths in the part called `name`, or of the classes where there is none."""
        return self.base if name is None else f"{self.base}{name}/"


def part_of(name: str) -> str:
    """Return the part that a folder of this name holds, "train", "val" or "test"; "" where the name says none."""
    match = _PART.fullmatch(name)
    return match.lastgroup or "" if match else ""


def find_parts(tree: Tree, wnids: AbstractSet[str]) -> Parts:
    """Find the parts of `tree`.

    Args:
        wnids: names that are certainly of classes: beside nothing but them, a part needs no class folders.

    Raises:
        InputError: two folders could be the same part, or a folder could be a part or a class.
    """
    base = _find_base(tree)
    names = sorted(tree.subfolders(base))
    by_part = {part: [name for name in names if part_of(name) == part] for part in _WORDS}
    train = _choose(tree, base, [name for name in by_part["train"] if tree.subfolders(f"{base}{name}/")])
    classes = {name for name in names if not part_of(name)}
    if train is None and not (classes and classes <= wnids):
        _refuse_parts(tree, base, by_part, bool(classes))
        return Parts(base, None, None, ())
    return Parts(base, train, _choose(tree, base, by_part["val"]), tuple(by_part["test"]))


def _refuse_parts(tree: Tree, base: str, by_part: Mapping[str, Sequence[str]], has_classes: bool) -> None:
    """Refuse folders that are named like parts, unless all of them may be classes among others."""
    where, named = f"{tree.root}: {base}", [name for names in by_part.values() for name in names]
    for name in (*by_part["val"], *by_part["test"]):
        if tree.subfolders(f"{base}{name}/"):
            raise InputError(
                f"{where}{name} has class folders but train has none: lay the images out as "
                "train/<class>/<image> and val/<class>/<image>"
            )
    if has_classes:
        if unclear := [name for name in named if name.lower() not in _ALSO_CLASSES]:
            raise InputError(
                f"{where}{unclear[0]} lies among class folders but has the name of a part: move the classes into "
                "train, or rename it if it is a class"
            )
    elif by_part["train"]:
        raise InputError(
            f"{where}{', '.join(named)}: named like a part, but without class folders: lay the images out as "
            "train/<class>/<image> and val/<class>/<image>"
        )
    elif named:
        kind = "validation" if by_part["val"] else "test"
        raise InputError(f"{where}{named[0]} is a {kind} part without a training part: put train beside it")


def _choose(tree: Tree, base: str, names: Sequence[str]) -> str | None:
    """Return the one of `names` that is a part's folder, rather one with images; None where there is none."""
    full = [name for name in names if tree.has_files(f"{base}{name}")] if len(names) > 1 else names
    if len(full) > 1:
        raise InputError(
            f"{tree.root}: {base}{' and '.join(full)} are all named like the {part_of(full[0])} part: move all but one "
            "elsewhere"
        )
    return next(iter(full or names), None)


def _find_base(tree: Tree) -> str:
    """Return the prefix of the folder that holds all images and a training part, else of the only top folder."""
    holding = {path.rpartition("/")[0] for path in tree.images}
    parts = {folder for folder in tree.folders if part_of(folder.rpartition("/")[2]) == "train"}
    for folder in sorted({part.rpartition("/")[0] for part in parts}, key=lambda each: (each.count("/"), each)):
        prefix = f"{folder}/" if folder else ""
        classes = tuple(f"{part}/" for part in parts if part.rpartition("/")[0] == folder)
        if any(each.startswith(classes) for each in holding) and all(f"{e}/".startswith(prefix) for e in holding):
            return prefix
    tops = tree.subfolders("")
    top = next(iter(tops), "")
    is_only = len(tops) == 1 and not part_of(top) and bool(tree.subfolders(f"{top}/"))
    return f"{top}/" if is_only and "" not in holding else ""
