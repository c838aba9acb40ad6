"""Features out of the cache for other programs: as NumPy's files, or as one in safetensors.

Both hold features (images, views, C, H, W) or (images, views, E), ids (images,) and labels (images,), and views
(views, 3): top, left and mirror of each crop. NumPy has no bfloat16, so that a .npy holds float32, which is exact and
twice as large; safetensors keeps bfloat16.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fasttransfer.core.errors import InputError
from fasttransfer.core.files import make_folder, replace_file
from fasttransfer.core.progress import Log, format_bytes
from fasttransfer.core.tensor_files import TensorSource, write_safetensors
from fasttransfer.core.text import json_text
from fasttransfer.features.cache_entry import CacheEntry, print_warning
from fasttransfer.features.shards import empty_features

_CHUNK_BYTES = 32 << 20  # of features in memory at a time, as bfloat16


def export(entry: CacheEntry, out: Path, log: Log = print_warning) -> list[Path]:
    """Write the features of `entry` with their ids, labels and views; memory stays within about 200 MB.

    ids are the images' rows in their part of the store; labels count through `entry.info.classes`.

    Args:
        out: a .safetensors, whose metadata describes it; or a .npy, beside which <name>-ids.npy, <name>-labels.npy,
            <name>-views.npy and <name>.json are written.

    Returns:
        The files.

    Raises:
        InputError: another suffix; a file of these names is there; the disk is full.
        CorruptFileError: something is damaged; the entry is quarantined.
    """
    rows, labels = entry.listing(log)
    arrays = {"ids": rows, "labels": labels, "views": np.array(entry.key.views, dtype=np.int64)}
    match out.suffix:
        case ".npy":
            paths = {name: out.with_name(f"{out.stem}-{name}.npy") for name in arrays}
            files = [*paths.values(), out.with_suffix(".json"), out]
            _need_room(files, 2 * entry.dense)
            for name, path in paths.items():
                with replace_file(path) as file:
                    np.save(file, arrays[name], allow_pickle=False)
            with replace_file(out.with_suffix(".json"), "w") as file:
                file.write(json_text(_describe(entry)))
            with replace_file(out) as file:  # last: where it is, the others are
                header = {"descr": "<f4", "fortran_order": False, "shape": _shape(entry)}
                np.lib.format.write_array_header_1_0(file, header)
                for x in _features(entry, log):
                    file.write(x.float().numpy().data)
        case ".safetensors":
            files = [out]
            _need_room(files, entry.dense)
            tensors = {
                name: TensorSource(torch.int64, array.shape, [np.ascontiguousarray(array).data])
                for name, array in arrays.items()
            }
            parts = (x.view(torch.int16).numpy().data for x in _features(entry, log))
            tensors["features"] = TensorSource(torch.bfloat16, _shape(entry), parts)
            with replace_file(out) as file:
                write_safetensors(file, tensors, {"fasttransfer": json.dumps(_describe(entry), sort_keys=True)})
        case _:
            raise InputError(f"{out}: features are exported to a .npy or a .safetensors: choose such a name")
    return files


def _shape(entry: CacheEntry) -> tuple[int, ...]:
    return entry.images, entry.views, *entry.shape


def _describe(entry: CacheEntry) -> dict[str, Any]:
    return {"entry": entry.folder.name, "about": asdict(entry.info), "key": entry.key.facts()}


def _features(entry: CacheEntry, log: Log) -> Iterator[Tensor]:
    """Yield all records in order, as chunks of (n, *shape) contiguous bfloat16 on the CPU.

    All chunks lie in the same memory and each overwrites the one before. Were each allocated anew, the C library would
    leave gaps between them that the next does not fit in, and memory would grow by hundreds of MB.

    Raises:
        CorruptFileError: a record is damaged; the entry is quarantined.
    """
    step, records = max(1, _CHUNK_BYTES // (2 * prod(entry.shape))), entry.images * entry.views
    order = (range(at, min(at + step, records)) for at in range(0, records, step))
    rows = torch.empty((min(step, records), *entry.shape), dtype=torch.bfloat16)
    out = [empty_features(len(rows), entry.shape) for _ in range(2)]
    with entry.reading(log) as reader, closing(reader.batches(order, ahead=1, out=out)) as batches:
        for x in batches:
            yield rows[: len(x)].copy_(x)


def _need_room(files: list[Path], bytes_: int) -> None:
    for path in files:
        if path.exists():
            raise InputError(f"{path}: is there already: remove it, or choose another name")
    folder = make_folder(files[-1].parent)
    free = shutil.disk_usage(folder).free
    if bytes_ > free:
        raise InputError(
            f"{files[-1]}: the features take {format_bytes(bytes_)}, the disk has {format_bytes(free)} free: "
            "choose another"
        )
