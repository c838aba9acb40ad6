"""Reading and writing tensors as safetensors files, with a checksum that readers verify."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import IO, Any, NamedTuple

import safetensors
import safetensors.torch
import torch
import xxhash
from torch import Tensor

from fasttransfer.core.files import replace_file

_CHECKSUM = "xxh3_128"
# The types that are stored, by the format's names.
_TYPES = {torch.float64: "F64", torch.int64: "I64", torch.float32: "F32", torch.bfloat16: "BF16", torch.uint8: "U8"}


class TensorSource(NamedTuple):
    """A tensor for `write_safetensors`, which may be made while it is written.

    Attributes:
        dtype: float64, int64, float32, bfloat16 or uint8.
        shape: of the whole tensor.
        parts: C-contiguous memory of any format; one after another, the elements in row-major order. The writer
            iterates once and takes a part only after it has written the previous one, which may then be overwritten.
    """

    dtype: torch.dtype
    shape: Sequence[int]
    parts: Iterable[memoryview]

    @property
    def nbytes(self) -> int:
        """Return the bytes that all elements take."""
        return prod(self.shape) * self.dtype.itemsize


class CorruptFileError(Exception):
    """A file that was truncated or changed, or is of another kind."""


def save(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write tensors and `about` (plain values, stored as JSON in the file's metadata): whole or not at all.

    The same tensors and values give the same bytes. Tensors are written from their own memory: safetensors' writer
    copies them twice, a gigabyte for a checkpoint of the paper's network.

    Raises:
        InputError: the disk is full or not writable.
    """
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    text = json.dumps(about, sort_keys=True)
    sources = {name: TensorSource(t.dtype, t.shape, [_bytes(t)]) for name, t in tensors.items()}
    metadata = {"fasttransfer": text, _CHECKSUM: _checksum(tensors, text)}
    with replace_file(path) as file:
        write_safetensors(file, sources, metadata)


def write_safetensors(file: IO[bytes], tensors: Mapping[str, TensorSource], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file from tensors that need not be in memory as a whole.

    The same tensors and metadata give the same bytes: tensors are written with the widest type first, those of one
    width by name, metadata in its own order.

    Args:
        file: a file open for writing bytes, at its start.
        tensors: name -> tensor.
        metadata: name -> text, for the header.

    Raises:
        KeyError: a dtype is not among those of `TensorSource`.
        ValueError: the parts of a tensor have more or fewer bytes than its dtype and shape take.
    """
    # Widest type first, so that each tensor begins where its type may.
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    start = 0
    for name in names:
        dtype, shape, _ = tensors[name]
        stop = start + tensors[name].nbytes
        header[name] = {"dtype": _TYPES[dtype], "shape": list(shape), "data_offsets": [start, stop]}
        start = stop
    words = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    words += b" " * (-len(words) % 8)
    file.write(len(words).to_bytes(8, "little") + words)
    for name in names:
        written = 0
        for part in tensors[name].parts:
            file.write(part)
            written += part.nbytes
        # The header is written already: with another size all tensors behind this one would be read as garbage.
        if written != tensors[name].nbytes:
            raise ValueError(f"{name}: its parts have {written} bytes, {tensors[name].nbytes} are due")


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file that `save` wrote: tensors on the CPU, and `about`.

    Raises:
        FileNotFoundError: there is no such file.
        CorruptFileError: the file is damaged, or `save` did not write it.
    """
    if not path.exists():
        raise FileNotFoundError(path)
    try:
        # Read once, not mapped: later changes to the file cannot reach the tensors that are verified here.
        content = path.read_bytes()
        tensors = safetensors.torch.load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        metadata = header["__metadata__"]
        text = metadata["fasttransfer"]
        about = json.loads(text)
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise CorruptFileError(f"{path}: damaged or not written by fasttransfer ({error})") from error
    if metadata.get(_CHECKSUM) != _checksum(tensors, text):
        raise CorruptFileError(f"{path}: its checksum does not match its contents")
    return tensors, about


def read_about(path: Path) -> dict[str, Any]:
    """Return the `about` of a file that `save` wrote, without reading the tensors and verifying the checksum.

    Raises:
        FileNotFoundError: there is no such file.
        CorruptFileError: `save` did not write the file.
    """
    about, _ = _read_header(path)
    return about


def stamp(path: Path) -> str:
    """Return what tells a file that `save` wrote from another, without reading the tensors.

    Returns:
        its size in bytes, time of change in nanoseconds and checksum, as text.

    Raises:
        FileNotFoundError: there is no such file.
        CorruptFileError: `save` did not write the file.
    """
    status = path.stat()
    _, checksum = _read_header(path)
    return f"{status.st_size} {status.st_mtime_ns} {checksum}"


def _read_header(path: Path) -> tuple[dict[str, Any], str]:
    """Return the `about` and the checksum of a file that `save` wrote."""
    with path.open("rb") as file:
        try:
            metadata = json.loads(file.read(int.from_bytes(file.read(8), "little")))["__metadata__"]
            about, checksum = json.loads(metadata["fasttransfer"]), str(metadata[_CHECKSUM])
        except (KeyError, ValueError, TypeError, MemoryError, OverflowError) as error:
            raise CorruptFileError(f"{path}: damaged or not written by fasttransfer ({error})") from error
    assert isinstance(about, dict)
    return about, checksum


def quarantine(path: Path) -> Path:
    """Move a damaged file out of the way, keeping it for inspection, and return its new name."""
    target = path.with_name(f"{path.name}.damaged")
    path.replace(target)
    return target


def _checksum(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = xxhash.xxh3_128(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    """Return the memory of a contiguous tensor, not a copy of it."""
    return tensor.view(-1).view(torch.uint8).numpy().data
