"""Tensors in and out of safetensors files, with a checksum that readers verify. No pickle is ever read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
import xxhash
from torch import Tensor

from fasttransfer.files import replace_file

_CHECKSUM = "xxh3_128"
# The format's names of what is stored here.
_TYPES = {torch.float64: "F64", torch.int64: "I64", torch.float32: "F32", torch.bfloat16: "BF16", torch.uint8: "U8"}


class CorruptFileError(Exception):
    """A file that is not what was written: cut short, changed, or of another kind."""


def save(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Writes tensors and `about` (plain values, kept as JSON in the file's metadata): whole or not at all.

    The same tensors and values give the same bytes. They are written from where they lie: safetensors' own writer
    copies them twice, a gigabyte for a checkpoint of the paper's network.

    Raises:
        InputError: the disk is full or not ours to write.
    """
    # Widest type first, so that each tensor begins where its type may.
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    names = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    text = json.dumps(about, sort_keys=True)
    header: dict[str, Any] = {"__metadata__": {"fasttransfer": text, _CHECKSUM: _checksum(tensors, text)}}
    start = 0
    for name in names:
        tensor = tensors[name]
        stop = start + tensor.nbytes
        header[name] = {"dtype": _TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, stop]}
        start = stop
    words = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    words += b" " * (-len(words) % 8)
    with replace_file(path) as file:
        file.write(len(words).to_bytes(8, "little") + words)
        for name in names:
            file.write(_bytes(tensors[name]))


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what `save` wrote: tensors on the CPU, and `about`.

    Raises:
        FileNotFoundError: there is no such file.
        CorruptFileError: it is damaged, or not a file of this project.
    """
    if not path.exists():
        raise FileNotFoundError(path)
    try:
        # Read once, not mapped: what is verified here is what is used later, whatever happens to the file.
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
    """What `save` was told about the tensors, without reading them: not verified.

    Raises:
        FileNotFoundError: there is no such file.
        CorruptFileError: it is not a file of this project.
    """
    with path.open("rb") as file:
        try:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            about = json.loads(header["__metadata__"]["fasttransfer"])
        except (KeyError, ValueError, TypeError, MemoryError, OverflowError) as error:
            raise CorruptFileError(f"{path}: damaged or not written by fasttransfer ({error})") from error
    assert isinstance(about, dict)
    return about


def quarantine(path: Path) -> Path:
    """Moves a damaged file out of the way, keeping it for inspection; returns its new name."""
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
    """A contiguous tensor's memory, not a copy of it."""
    return tensor.view(-1).view(torch.uint8).numpy().data
