"""Features out of the cache, for programs that know nothing of it: NumPy's files, or one in safetensors.

Both hold features (pictures, views, C, H, W) or (pictures, views, E), ids (pictures,) and labels (pictures,), and views
(views, 3): top, left and mirror of each crop. NumPy has no bfloat16, so that a .npy holds float32, which is exact and
twice as large; safetensors keeps bfloat16.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fasttransfer.errors import InputError
from fasttransfer.features.entry import Entry, set_aside, tell
from fasttransfer.files import make_folder, replace_file
from fasttransfer.progress import Say, size
from fasttransfer.weights import CorruptFileError

_AT_ONCE = 32 << 20  # bytes of features that are in memory at a time, as bfloat16
_SAFETENSORS = {"int64": "I64", "bfloat16": "BF16"}


def export(entry: Entry, out: Path, say: Say = tell) -> list[Path]:
    """Writes the features of `entry` with their ids, labels and views; memory stays within about 200 MB.

    ids are the pictures' rows in their part of the store; labels count through `entry.about.classes`.

    Args:
        out: a .safetensors, whose metadata says what it is; or a .npy, beside which <name>-ids.npy, <name>-labels.npy,
            <name>-views.npy and <name>.json come to lie.

    Returns:
        The files.

    Raises:
        InputError: another ending; a file of these names is there; the disk is full.
        CorruptFileError: something is damaged; the entry has been set aside.
    """
    rows, labels = entry.listing(say)
    beside = {"ids": rows, "labels": labels, "views": np.array(entry.key.views, dtype=np.int64)}
    match out.suffix:
        case ".npy":
            paths = {name: out.with_name(f"{out.stem}-{name}.npy") for name in beside}
            files = [*paths.values(), out.with_suffix(".json"), out]
            _need_room(files, 2 * entry.dense)
            for name, path in paths.items():
                with replace_file(path) as file:
                    np.save(file, beside[name], allow_pickle=False)
            with replace_file(out.with_suffix(".json"), "w") as file:
                json.dump(_about(entry), file, indent=1)
            with replace_file(out) as file:  # last: where it is, the others are
                header = {"descr": "<f4", "fortran_order": False, "shape": _shape(entry)}
                np.lib.format.write_array_header_1_0(file, header)
                for x in _features(entry, say):
                    file.write(x.float().numpy().data)
        case ".safetensors":
            files = [out]
            _need_room(files, entry.dense)
            with replace_file(out) as file:
                file.write(_header(entry, beside))
                for array in beside.values():
                    file.write(np.ascontiguousarray(array).data)
                for x in _features(entry, say):
                    file.write(x.view(torch.int16).numpy().data)
        case _:
            raise InputError(f"{out}: features are exported to a .npy or a .safetensors: choose such a name")
    return files


def _shape(entry: Entry) -> tuple[int, ...]:
    return entry.pictures, entry.views, *entry.shape


def _about(entry: Entry) -> dict[str, Any]:
    return {"entry": entry.folder.name, "about": asdict(entry.about), "key": entry.key.facts()}


def _features(entry: Entry, say: Say) -> Iterator[Tensor]:
    """All records, (N, *shape) contiguous bfloat16 at a time."""
    step, records = max(1, _AT_ONCE // (2 * prod(entry.shape))), entry.pictures * entry.views
    order = (range(at, min(at + step, records)) for at in range(0, records, step))
    with entry.open(say=say) as reader, closing(reader.batches(order, ahead=1)) as batches:
        try:
            for x in batches:
                yield x.contiguous()
        except CorruptFileError as error:
            set_aside(entry, error, say)
            raise


def _header(entry: Entry, beside: Mapping[str, NDArray[np.int64]]) -> bytes:
    """What a safetensors file begins with; tensors lie behind it in this order, without gaps."""
    said: dict[str, Any] = {"__metadata__": {"fasttransfer": json.dumps(_about(entry), sort_keys=True)}}
    shapes = {name: ("int64", array.shape) for name, array in beside.items()} | {
        "features": ("bfloat16", _shape(entry))
    }
    at = 0
    for name, (dtype, shape) in shapes.items():
        bytes_ = prod(shape) * (8 if dtype == "int64" else 2)
        said[name] = {"dtype": _SAFETENSORS[dtype], "shape": list(shape), "data_offsets": [at, at + bytes_]}
        at += bytes_
    text = json.dumps(said, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _need_room(files: list[Path], bytes_: int) -> None:
    for path in files:
        if path.exists():
            raise InputError(f"{path}: is there already: remove it, or choose another name")
    folder = make_folder(files[-1].parent)
    free = shutil.disk_usage(folder).free
    if bytes_ > free:
        raise InputError(
            f"{files[-1]}: the features take {size(bytes_)}, the disk has {size(free)} free: choose another"
        )
