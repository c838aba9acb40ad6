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


class CorruptFileError(Exception):
    """A file that is not what was written: cut short, changed, or of another kind."""


def save(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Writes tensors and `about` (plain values, kept as JSON in the file's metadata): whole or not at all.

    The same tensors and values give the same bytes.

    Raises:
        InputError: the disk is full or not ours to write.
    """
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    text = json.dumps(about, sort_keys=True)
    metadata = {"fasttransfer": text, _CHECKSUM: _checksum(tensors, text)}
    content = safetensors.torch.save(tensors, metadata)
    header, start = _ordered_header(content)
    with replace_file(path) as file:
        file.write(header)
        file.write(memoryview(content)[start:])


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


def _ordered_header(content: bytes) -> tuple[bytes, int]:
    """A file's header with its metadata sorted, which safetensors writes in any order; and where the tensors begin."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, start


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
        digest.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
