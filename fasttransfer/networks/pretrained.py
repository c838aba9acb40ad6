"""Pretrained weights for a network of a library: a file, or a tag under which the library publishes weights.

A file is safetensors; a .pth or .pt of torch is read with `weights_only`, so that no code in it is run. The classifier
is new in every network of a study, so that the number of classes may differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
import xxhash
from torch import Tensor

from fasttransfer.core.errors import InputError
from fasttransfer.core.progress import Log
from fasttransfer.networks.architecture import Architecture

_FEW = 3  # keys that an error shows
_PICKLES = (".pth", ".pt", ".bin")
_WRAPPERS = ("state_dict", "model", "model_state_dict")  # under which training scripts put the state
_PREFIX = "module."  # DataParallel's


@dataclass(frozen=True, eq=False)
class Pretrained:
    """Weights that were trained elsewhere.

    Attributes:
        name: as the user gave it.
        state: of all stages but the classifier, by name: float32, and buffers.
        digest: of names and values.
    """

    name: str
    state: Mapping[str, Tensor]
    digest: str


def load_pretrained(network: Architecture, weights: str, log: Log = lambda text: None) -> Pretrained:
    """Read the weights that a user names for `network`.

    Args:
        weights: path of a .safetensors, .pth or .pt file, or the tag of weights that the network's library publishes,
            such as IMAGENET1K_V1.
        log: told that a pickle is read.

    Raises:
        InputError: there is no such file or tag, the library cannot download it, or it does not fit the network.
    """
    if network.channel_mean is None:
        raise InputError(f"--weights {weights}: {network.name} takes none: name a network of a library with --network")
    path = Path(weights)
    if path.suffix == ".safetensors" or path.suffix in _PICKLES or path.exists():
        found = _read_file(path, log)
    else:
        from fasttransfer.networks.catalogue import find_model  # here, because it imports the libraries

        found = find_model(network.name).download(weights, network.crop)
    state = _fit(network, {name.removeprefix(_PREFIX): tensor for name, tensor in found.items()}, weights)
    digest = xxhash.xxh3_128()
    for name, tensor in state.items():
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return Pretrained(weights, state, str(digest.hexdigest()))


def _read_file(path: Path, log: Log) -> Mapping[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        log(f"{path} is a pickle: only tensors are read from it; safetensors would be safer and faster")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"--weights {path}: no such file") from None
    except Exception as error:  # damaged pickles make torch.load raise nearly anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"--weights {path}: cannot be read ({reason}): name a .safetensors file") from None
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not all(isinstance(tensor, Tensor) for tensor in content.values()):
        raise InputError(f"--weights {path}: holds no state of a network: save model.state_dict() as safetensors")
    return content


def _fit(network: Architecture, found: Mapping[str, Tensor], weights: str) -> dict[str, Tensor]:
    """Return the state of all stages but the classifier.

    Raises:
        InputError: something is missing or has another shape.
    """
    last = len(network.cuts)
    state, wrong = {}, []
    for name, own in network.build(2, "fp32", torch.device("meta"), stop=last).state().items():
        given = found.get(name)
        if given is None and name.endswith("num_batches_tracked"):  # files of early PyTorch lack them
            given = torch.zeros((), dtype=own.dtype)
        if given is None:
            wrong.append(f"{name} {tuple(own.shape)} is missing")
        elif given.shape != own.shape:
            wrong.append(f"{name} is {tuple(given.shape)} and should be {tuple(own.shape)}")
        else:
            state[name] = given.to("cpu", own.dtype).contiguous()
    if wrong:
        more = f" and {len(wrong) - _FEW} more" if len(wrong) > _FEW else ""
        raise InputError(
            f"--weights {weights}: does not fit {network.name}: {'; '.join(wrong[:_FEW])}{more}: name weights of this "
            "network"
        )
    return state
