"""The files that a power cut may leave behind, from a log of the operations on them (tests/faults/interpose.c).

The model is a file system that keeps the order of changes to its folders and nothing else: what was flushed is there;
of the later changes to folders some first ones may be; bytes that were not flushed may be there, missing, or zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import NamedTuple


class Operation(NamedTuple):
    """One line of the log; `what` is create, write, truncate, sync, rename, unlink, mkdir or rmdir."""

    what: str
    path: str
    target: str
    offset: int
    data: bytes


@dataclass
class _File:
    data: bytearray = field(default_factory=bytearray)
    flushed: bytes = b""


Names = dict[str, "_File | None"]  # path -> file; None for a folder


def read_log(path: Path) -> list[Operation]:
    """Read the operations of a log."""
    raw, at, operations = path.read_bytes(), 0, []
    while at < len(raw):
        end = raw.index(b"\n", at)
        what, name, target, offset, size = raw[at:end].decode().split("\t")
        at = end + 1 + (int(size) if what == "write" else 0)
        operations.append(Operation(what, name, target, int(offset), raw[end + 1 : at]))
    return operations


def cut_power(operations: Sequence[Operation], random: Random) -> dict[str, bytes | None]:
    """Return path -> content (None: a folder) as a power cut after `operations` may leave it."""
    changes, forced = _replay(operations)
    names: Names = {}
    for change, file in changes[: random.randint(forced, len(changes))]:
        _apply(names, change, file)
    return {name: None if file is None else _contents(file, random) for name, file in names.items()}


def finish(operations: Sequence[Operation]) -> dict[str, bytes | None]:
    """Return path -> content after `operations` and a flush of everything."""
    names: Names = {}
    for change, file in _replay(operations)[0]:
        _apply(names, change, file)
    return {name: None if file is None else bytes(file.data) for name, file in names.items()}


def _replay(operations: Sequence[Operation]) -> tuple[list[tuple[Operation, _File | None]], int]:
    """Return the changes to folders, each with the file that it creates, and how many of them were flushed."""
    names: Names = {}
    changes: list[tuple[Operation, _File | None]] = []
    forced = 0
    for operation in operations:
        file = names.get(operation.path)
        match operation.what:
            case "create" if file is not None:
                file.data.clear()
            case "create":
                changes.append((operation, _File()))
                _apply(names, *changes[-1])
            case "write":
                assert file is not None, f"{operation.path} was written before it was created"
                file.data.extend(bytes(max(0, operation.offset - len(file.data))))
                file.data[operation.offset : operation.offset + len(operation.data)] = operation.data
            case "truncate":
                assert file is not None
                del file.data[operation.offset :]
                file.data.extend(bytes(operation.offset - len(file.data)))
            case "sync" if file is not None:
                file.flushed = bytes(file.data)
            case "sync":
                forced = len(changes)
            case _:
                changes.append((operation, None))
                _apply(names, operation, None)
    return changes, forced


def _apply(names: Names, change: Operation, file: _File | None) -> None:
    match change.what:
        case "create" | "mkdir":
            names[change.path] = file
        case "unlink" | "rmdir":
            del names[change.path]
        case "rename":
            inside = f"{change.path}/"
            for name in [name for name in names if name == change.path or name.startswith(inside)]:
                names[change.target + name.removeprefix(change.path)] = names.pop(name)


def _contents(file: _File, random: Random) -> bytes:
    """Return what a file holds where only its flushed bytes are certain."""
    zeros = file.flushed + bytes(max(0, len(file.data) - len(file.flushed)))
    return random.choice([file.flushed, bytes(file.data), zeros])
