"""What has been prepared so far, so that a prepare that was killed can be gone on with.

A file in the folder that is being filled: a head that says what is made of which images, then a line for each shard
that is on disk. Every line begins with the XXH3-64 of the rest of it: half a line, or a changed one, ends what counts.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import xxhash

from fasttransfer.core.files import replace_file
from fasttransfer.pipelines.shard_writer import ImageShard

JOURNAL = "journal"

Head = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class JournalEntry:
    """Some images that are done with.

    Attributes:
        part: the part that they belong to; entries come in order.
        looked_at: how many images of the part's list had been looked at.
        refused: path and reason of those left out since the entry before.
        shard: what the others went to, which is on disk; None where there were none, at the end of a part.
    """

    part: str
    looked_at: int
    refused: list[tuple[str, str]]
    shard: ImageShard | None


def read_journal(folder: Path) -> tuple[Head | None, list[JournalEntry]]:
    """The head, None where there is no journal, and the entries that can be trusted to be what was written."""
    try:
        lines = (folder / JOURNAL).read_bytes().split(b"\n")
    except OSError:
        return None, []
    values = []
    for line in lines:
        checksum, _, text = line.partition(b" ")
        if not text or xxhash.xxh3_64_hexdigest(text).encode() != checksum:
            break
        values.append(json.loads(text))
    if not values:
        return None, []
    return values[0], [_entry(*value) for value in values[1:]]


def _entry(part: str, looked_at: int, refused: list[list[str]], shard: list[Any] | None) -> JournalEntry:
    return JournalEntry(
        part, looked_at, [(path, reason) for path, reason in refused], ImageShard(*shard) if shard else None
    )


class Journal:
    """The journal of `folder`, begun with `entries`; `add` may be called from another thread."""

    def __init__(self, folder: Path, head: Head, entries: Sequence[JournalEntry]) -> None:
        path = folder / JOURNAL
        with replace_file(path) as file:
            file.write(_line(head))
            file.writelines(map(_line_of, entries))
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115, closed by close()

    def add(self, entry: JournalEntry) -> None:
        """Enters what is done with, its shard on disk."""
        self._file.write(_line_of(entry))
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """The file stays."""
        self._file.close()


def _line_of(entry: JournalEntry) -> bytes:
    return _line([entry.part, entry.looked_at, entry.refused, entry.shard])


def _line(value: Any) -> bytes:
    text = json.dumps(value, separators=(",", ":")).encode()
    return xxhash.xxh3_64_hexdigest(text).encode() + b" " + text + b"\n"
