"""Find the members of an uncompressed tar from its headers alone; nothing is unpacked.

The headers are parsed here, because `tarfile` takes five times as long, minutes for a million of them, and takes a
damaged header for the end.
"""

from __future__ import annotations

import os
import weakref
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_BLOCK = 512
_NOTHING = bytes(_BLOCK)
_LEAST, _MOST = 4096, 1 << 20  # bytes per read: a page where headers lie farther apart than that
_ADLER = 65521

# Kinds of member by the type byte of the header; any other byte stands for something else with data.
_KINDS = dict.fromkeys(b"\x0007", "file") | {ord("5"): "folder", ord("1"): "hard link", ord("2"): "link"}
_KINDS |= dict.fromkeys(b"346", "device")
_SPARSE = ord("S")  # GNU's, with more headers before the data
# Headers that change the one that follows, or all that follow.
_LONG_NAME, _LONG_TARGET, _ATTRIBUTES, _SOLARIS_ATTRIBUTES, _GLOBAL_ATTRIBUTES = b"LKxXg"
_CHANGING = (_LONG_NAME, _LONG_TARGET, _ATTRIBUTES, _SOLARIS_ATTRIBUTES, _GLOBAL_ATTRIBUTES)

PACKED = {  # first bytes of a compressed archive -> how to make it a plain tar
    b"\x1f\x8b": "unpack it with gunzip",
    b"BZh": "unpack it with bunzip2",
    b"\xfd7zXZ\x00": "unpack it with unxz",
    b"\x28\xb5\x2f\xfd": "unpack it with unzstd",
    b"PK\x03\x04": "unpack it with unzip and name the folder",
}


class ArchiveError(Exception):
    """A file that is not a tar, or a damaged one; the message is the reason, without the archive's name."""


class ArchiveMember(NamedTuple):
    """One member of an archive; its bytes start at `offset` of the file that the archive lies in."""

    name: str
    kind: str  # "file" | "folder" | "hard link" | "link" | "device" | "other"
    size: int
    mtime_ns: int
    offset: int
    target: str = ""  # of a link


class Archive:
    """An uncompressed tar: the file `path`, or its bytes from `start` to `end`. Not thread-safe.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(self, path: Path, start: int = 0, end: int | None = None) -> None:
        self._path, self._start = path, start
        self._handle = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._handle)
        self._end = os.fstat(self._handle).st_size if end is None else end
        self._attributes: dict[str, str] = {}  # of all members from here on
        self._window, self._window_at, self._served, self._next = b"", start, 0, _LEAST

    def packed(self) -> str:
        """Return how to uncompress the archive; "" where it is not compressed."""
        begin = self._bytes(self._start, 8)
        return next((remedy for magic, remedy in PACKED.items() if begin.startswith(magic)), "")

    def members(self) -> Iterator[ArchiveMember]:
        """Yield all members in order.

        Raises:
            ArchiveError: not a tar, or damaged from here on.
            OSError: the file cannot be read.
        """
        at: int | None = self._start
        while at is not None and at < self._end:
            try:
                member, after = self._member(at)
            except (ValueError, OverflowError) as error:  # a field for a number holds none, or an infinite one
                raise ArchiveError(f"a header has damaged attributes ({error})") from error
            if member is not None:
                yield member
            at = after
        if at == self._start:
            raise ArchiveError("it is empty")

    def read(self, member: ArchiveMember) -> bytes:
        """Return the bytes of a small file; fastest for the member that `members` yielded last."""
        return self._bytes(member.offset, member.size)

    def _member(self, at: int) -> tuple[ArchiveMember | None, int | None]:
        """Return the member whose headers start at `at`, and the start of the next one's; None and None at the end."""
        attributes = dict(self._attributes)
        while True:
            header = self._bytes(at, _BLOCK)
            if header == _NOTHING:
                return None, None
            type_byte = _check_header(header)
            size = _number(header[124:136])
            if type_byte not in _CHANGING:
                break
            text = self._bytes(at + _BLOCK, size)
            if len(text) < size:
                raise ArchiveError(f"it ends {size - len(text)} bytes too early")
            if type_byte in (_LONG_NAME, _LONG_TARGET):
                attributes["path" if type_byte == _LONG_NAME else "linkpath"] = _text(text)
            else:
                attributes |= (found := _parse_attributes(text))
                if type_byte == _GLOBAL_ATTRIBUTES:
                    self._attributes |= found
            at += _BLOCK + _padded(size)
        kind, name = _KINDS.get(type_byte, "other"), attributes.get("path") or _name(header)
        if name.endswith("/") and kind in ("file", "folder"):  # a folder, before there was a type for them
            kind, name = "folder", name.rstrip("/")
        if kind not in ("file", "other"):
            size = 0
        elif "size" in attributes:
            size = int(attributes["size"])
        if "sparse" in attributes:
            kind = "other"
        goes_on = type_byte == _SPARSE and header[482] != 0
        while goes_on:
            at += _BLOCK
            goes_on = self._bytes(at, _BLOCK)[504:505] not in (b"", b"\0")
        if size < 0:  # would lead back to what was read already
            raise ArchiveError("a header has a negative size")
        seconds = attributes.get("mtime")
        mtime_ns = int(float(seconds) * 1e9) if seconds else _number(header[136:148]) * 10**9
        is_link = kind in ("link", "hard link")
        target = (attributes.get("linkpath") or _text(header[157:257])) if is_link else ""
        after = at + _BLOCK + _padded(size)
        if after > self._end:
            raise ArchiveError(f"it ends {after - self._end} bytes too early")
        return ArchiveMember(name, kind, size, mtime_ns, at + _BLOCK, target), after

    def _bytes(self, at: int, count: int) -> bytes:
        """Return `count` bytes from `at`, fewer at the end.

        The amount read ahead grows as long as it is used: headers of small images lie close together, those of large
        ones do not.
        """
        inside = at - self._window_at
        if not 0 <= inside <= inside + count <= len(self._window):
            self._next = min(self._next * 4, _MOST) if self._served > 1 else _LEAST
            self._window = os.pread(self._handle, max(0, min(max(count, self._next), self._end - at)), at)
            self._window_at, self._served, inside = at, 0, 0
        self._served += 1
        return self._window[inside : inside + count]


def read_at(path: Path, start: int, count: int) -> bytes:
    """Return `count` bytes of a file from `start` on. Thread-safe.

    Raises:
        OSError: the file cannot be read or is too short.
    """
    with open(path, "rb") as file:
        file.seek(start)
        data = file.read(count)
    if len(data) < count:
        raise OSError(f"the archive ends {count - len(data)} bytes too early")
    return data


def _check_header(header: bytes) -> int:
    """Return the type byte of a header.

    Raises:
        ArchiveError: the checksum is wrong.
    """
    if len(header) < _BLOCK:
        raise ArchiveError("it ends within a header")
    # The checksum is the sum of the bytes with its own eight read as spaces; the lower half of Adler-32 is a sum.
    summed = (zlib.adler32(header) & 0xFFFF) - 1 - sum(header[148:156]) + 8 * ord(" ")
    if (summed - _number(header[148:156])) % _ADLER:
        raise ArchiveError("a header has a wrong checksum")
    return header[156]


def _number(field: bytes) -> int:
    if field[0] & 0x80:  # GNU's form for what octal digits cannot hold
        return int.from_bytes(field[1:], "big") - (256 ** (len(field) - 1) if field[0] == 0xFF else 0)
    try:
        return int(field.partition(b"\0")[0].strip() or b"0", 8)
    except ValueError:
        raise ArchiveError("a header is not that of a tar") from None


def _name(header: bytes) -> str:
    name = _text(header[:100])
    if header[345] and header[257:263] == b"ustar\0":
        return f"{_text(header[345:500])}/{name}"
    return name


def _text(field: bytes) -> str:
    return os.fsdecode(field.partition(b"\0")[0])


def _parse_attributes(text: bytes) -> dict[str, str]:
    """Return the records "<length> <key>=<value>" of a POSIX header that change the next member."""
    attributes = {}
    while text.strip(b"\0"):
        length, _, _ = text.partition(b" ")
        if not length.isdigit() or not len(length) < int(length) <= len(text):
            raise ArchiveError("a header has damaged attributes")
        key, _, value = text[len(length) + 1 : int(length)].removesuffix(b"\n").partition(b"=")
        name = key.decode("ascii", "replace")
        if name in ("path", "linkpath", "size", "mtime"):
            attributes[name] = os.fsdecode(value)
        elif name.startswith("GNU.sparse."):
            attributes["sparse"] = name
        text = text[int(length) :]
    return attributes


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK
