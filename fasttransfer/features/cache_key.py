"""The key of an entry of the cache: all that determines features, to the bit.

A key has digests of weights, images and views, and describes what computes: precision, device, threads, batch, and the
versions of everything that could round a sum in another way. It has no name of a network or a folder, and no time: the
same features of another study are the same entry.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from fasttransfer import networks, ops
from fasttransfer.core import machine
from fasttransfer.features import shards
from fasttransfer.networks.architecture import Architecture
from fasttransfer.ops import native

FORMAT = 3
"""Version of keys and manifests, raised when either changes. It enters every digest."""

# Extensions that choose between kernels whose sums differ in order or in type.
_EXTENSIONS = (
    "avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "asimd", "bf16", "sve",
)  # fmt: skip


@dataclass(frozen=True)
class CacheKey:
    """All that determines the bytes of an entry.

    Attributes:
        prefix: `state_digest` of the stages up to the cut.
        mean: `means_digest` of what is subtracted from the pixels.
        scale: factor on the pixel differences.
        network: `Architecture.facts` of the network; shape: of a record.
        cut: the number of the stage that it leaves, one that `Architecture.kept_cut` returns.
        images: `images_digest` of the images.
        views: (top, left, mirror) of each view, in order.
        precision: "fp32" or "bf16"; device: "cpu" or "cuda".
        threads: of a forward pass; batch: images of one, of which the last is filled up.
        versions: `versions`.
    """

    prefix: str
    mean: str
    scale: float
    network: Mapping[str, Any]
    cut: int
    shape: tuple[int, ...]
    images: str
    views: tuple[tuple[int, int, bool], ...]
    precision: str
    device: str
    threads: int
    batch: int
    versions: Mapping[str, str]

    def digest(self) -> str:
        """Return the name of the entry, 32 hexadecimal digits."""
        text = json.dumps([FORMAT, self.facts()], sort_keys=True, separators=(",", ":"))
        return str(xxhash.xxh3_128_hexdigest(text.encode()))

    def facts(self) -> dict[str, Any]:
        """Return the key as plain values for JSON."""
        facts: dict[str, Any] = json.loads(json.dumps(asdict(self)))  # lists for tuples
        return facts

    @classmethod
    def of_facts(cls, facts: Mapping[str, Any]) -> CacheKey:
        """Return the key whose `facts` these are.

        Raises:
            KeyError, TypeError, ValueError: they are not the facts of a key.
        """
        views = tuple((int(top), int(left), bool(mirror)) for top, left, mirror in facts["views"])
        return cls(**{**facts, "shape": tuple(map(int, facts["shape"])), "views": views})


def state_digest(state: Mapping[str, Tensor], network: Architecture, cut: int) -> str:
    """Return the digest of the state of stages 1 to `cut`: float32 weights, and buffers."""
    digest = xxhash.xxh3_128()
    for name in network.names(0, cut):
        _add(digest, name, state[name])
    return str(digest.hexdigest())


def means_digest(means: Tensor) -> str:
    """Return the digest of what is subtracted from pixels, (S, S, 3) float32."""
    digest = xxhash.xxh3_128()
    _add(digest, "mean", means)
    return str(digest.hexdigest())


def images_digest(store: str, part: str, rows: NDArray[np.int64]) -> str:
    """Return the digest of some images in their order.

    Args:
        store: digest of their store.
        part: "train" or "val".
        rows: (n,) their numbers in the part.
    """
    digest = xxhash.xxh3_128(json.dumps([store, part, len(rows)]).encode())
    digest.update(np.ascontiguousarray(rows, dtype="<i8").data)
    return str(digest.hexdigest())


def versions(device: str, *, is_jpeg: bool = False) -> dict[str, str]:
    """Return what the bits of a forward pass depend on beside its inputs, on this machine as it is set now.

    Args:
        device: "cpu" or "cuda".
        is_jpeg: whether pixels are decoded on the way (a jpeg store), rather than read as they are.
    """
    native.load()
    facts = {
        "torch": torch.__version__,
        "matmul": torch.get_float32_matmul_precision(),
        "native library": _libraries(device),
        "network": _sources(),
        "shards": str(shards.VERSION),
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        cudnn = torch.backends.cudnn
        facts |= {
            "device": f"{properties.name} sm_{properties.major}{properties.minor}",
            "cuda": str(torch.version.cuda),
            "cudnn": f"{cudnn.version()} deterministic={cudnn.deterministic} benchmark={cudnn.benchmark}",
        }
    else:
        available = set(machine.instructions())
        facts |= {
            "device": machine.processor(),
            "instructions": " ".join(name for name in _EXTENSIONS if name in available),
            "kernels": f"{torch.backends.cpu.get_cpu_capability()} {os.environ.get('ONEDNN_MAX_CPU_ISA', 'ALL')}",
        }
    if is_jpeg:
        facts |= {package: machine.version(package) for package in ("torchvision", "nvidia-dali")}
    return facts


def _add(digest: Any, name: str, tensor: Tensor) -> None:
    if tensor.dtype == torch.bfloat16:
        raise TypeError(f"{name} is bfloat16, its digest is of float32")
    digest.update(f"{name}{tuple(tensor.shape)}".encode())
    digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)


def _libraries(device: str) -> str:
    """Return digests of the native libraries that are loaded; "PyTorch" where none is."""
    folder = Path(ops.__file__).resolve().parent
    names = ("_native_cpu", "_native_cuda") if device == "cuda" else ("_native_cpu",)
    libraries = sorted(Path(path).resolve() for path in torch.ops.loaded_libraries)
    ours = [path for path in libraries if path.parent == folder and path.name.startswith(names)]
    return " ".join(_file_digest(path) for path in ours) or "PyTorch"


@cache
def _file_digest(path: Path) -> str:
    return str(xxhash.xxh3_128_hexdigest(path.read_bytes()))


@cache
def _sources() -> str:
    """Return the digest of the code of networks and operators: unlike a version number, it cannot be forgotten."""
    digest = xxhash.xxh3_128()
    operators = sorted(Path(ops.__file__).resolve().parent.glob("*.py"))
    for path in (*sorted(Path(networks.__path__[0]).glob("*.py")), *operators):
        digest.update(path.name.encode() + path.read_bytes())
    return str(digest.hexdigest())
