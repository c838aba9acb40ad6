"""Weights come back as they went or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fasttransfer.core import tensor_files

DAMAGED = r"/(w|network)\.safetensors: damaged or not written by fasttransfer \("


def test_round_trip(tmp_path: Path) -> None:
    tensors = {
        "conv1.weight": torch.randn(4, 3, 5, 5).contiguous(memory_format=torch.channels_last),
        "loss_sum": torch.tensor(3.5, dtype=torch.float64),
        "half": torch.randn(3).bfloat16(),
        "none": torch.empty(0),
    }
    path = tmp_path / "w.safetensors"
    tensor_files.save(path, tensors, {"cell": "A3B.s0", "step": 7, "list": [1.5, None]})
    found, about = tensor_files.load(path)
    assert about == {"cell": "A3B.s0", "step": 7, "list": [1.5, None]}
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_the_same_gives_the_same_bytes(tmp_path: Path) -> None:
    path, found = tmp_path / "w.safetensors", set()
    for _ in range(20):  # of two notes in any order, one order by chance: less than one in a million
        tensor_files.save(path, {"a": torch.arange(5.0), "b": torch.ones(3)}, {"cell": "baseA.s0", "source": "Käfer"})
        found.add(path.read_bytes())
    assert len(found) == 1
    assert tensor_files.load(path)[1]["source"] == "Käfer"


def test_tensors_are_written_in_parts(tmp_path: Path) -> None:
    import safetensors.torch

    path, x = tmp_path / "w.safetensors", torch.arange(12.0).view(4, 3)
    memory = torch.empty(3)

    def rows() -> Iterator[memoryview]:
        for row in x:  # each in the place of the one before
            yield memory.copy_(row).numpy().data

    tensors = {
        "z": tensor_files.TensorSource(torch.float32, x.shape, rows()),
        "bytes": tensor_files.TensorSource(torch.uint8, (5,), [memoryview(b"abc"), memoryview(b"de")]),
        "ids": tensor_files.TensorSource(torch.int64, (2,), [torch.tensor([7, -1]).numpy().data]),
    }
    with path.open("wb") as file:
        tensor_files.write_safetensors(file, tensors, {"of": "parts"})
    found = safetensors.torch.load_file(path)
    assert found.keys() == tensors.keys() and torch.equal(found["z"], x)
    assert bytes(found["bytes"].tolist()) == b"abcde" and found["ids"].tolist() == [7, -1]


@pytest.mark.parametrize("text", [b"abc", b"abcdef"])
def test_parts_of_another_size_are_refused(tmp_path: Path, text: bytes) -> None:
    tensors = {"bytes": tensor_files.TensorSource(torch.uint8, (5,), [memoryview(text)])}
    with (tmp_path / "w.safetensors").open("wb") as file, pytest.raises(ValueError, match=r"bytes: .* 5 are due"):
        tensor_files.write_safetensors(file, tensors, {})


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    tensor_files.save(path, {"a": torch.arange(12.0)}, {"cell": "baseA.s0"})
    content = path.read_bytes()
    for at in range(len(content)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        try:
            found, about = tensor_files.load(path)
        except tensor_files.CorruptFileError:
            continue
        # What is left: blanks that pad the header.
        assert content[at] == 0x20
        assert about == {"cell": "baseA.s0"}
        assert torch.equal(found["a"], torch.arange(12.0))


@pytest.mark.parametrize("length", [0, 7, 100, -1])
def test_a_file_that_was_cut_short_is_noticed(tmp_path: Path, length: int) -> None:
    path = tmp_path / "w.safetensors"
    tensor_files.save(path, {"a": torch.arange(12.0)}, {})
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(tensor_files.CorruptFileError, match=DAMAGED):
        tensor_files.load(path)


def test_other_peoples_files_are_refused(tmp_path: Path) -> None:
    import safetensors.torch

    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file({"a": torch.ones(2)}, path)
    with pytest.raises(tensor_files.CorruptFileError, match=DAMAGED):
        tensor_files.load(path)
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors"):
        tensor_files.load(tmp_path / "none.safetensors")


def test_loaded_tensors_do_not_follow_the_file(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    tensor_files.save(path, {"a": torch.ones(1000)}, {})
    found, _ = tensor_files.load(path)
    path.write_bytes(bytes(path.stat().st_size))
    assert (found["a"] == 1).all()


def test_about_is_read_without_the_tensors(tmp_path: Path) -> None:
    path = tmp_path / "network.safetensors"
    tensor_files.save(path, {"a": torch.arange(12.0)}, {"cell": "baseA.s0", "step": 7})
    assert tensor_files.read_about(path) == {"cell": "baseA.s0", "step": 7}
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(tensor_files.CorruptFileError, match=DAMAGED):
        tensor_files.read_about(path)
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(tensor_files.CorruptFileError, match=DAMAGED):
        tensor_files.read_about(path)


def test_a_stamp_changes_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "network.safetensors"
    tensor_files.save(path, {"a": torch.zeros(12)}, {})
    first = tensor_files.stamp(path)
    assert tensor_files.stamp(path) == first
    before = path.stat()
    tensor_files.save(path, {"a": torch.ones(12)}, {})  # of the same size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert tensor_files.stamp(path) != first
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(tensor_files.CorruptFileError, match=DAMAGED):
        tensor_files.stamp(path)
