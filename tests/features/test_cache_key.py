"""A key depends on all that determines features, and on nothing else."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from entries import KEY, TINY, key

from fasttransfer.features import cache_key as keys
from fasttransfer.features.cache_key import CacheKey, images_digest, means_digest, state_digest, versions
from fasttransfer.networks import caffenet
from fasttransfer.networks.geometry import LAYER_NAMES
from fasttransfer.ops import native

OTHER = {
    "prefix": "9" * 32,
    "mean": "9" * 32,
    "scale": 1.0,
    "network": replace(TINY, hidden=(16, 17)).facts(),
    "cut": 4,
    "shape": (8, 3, 3),
    "images": "9" * 32,
    "views": ((1, 1, False),),
    "precision": "bf16",
    "device": "cuda",
    "threads": 2,
    "batch": 9,
    "versions": {"torch": "2", "shards": "2"},
}


def test_every_field_changes_the_digest() -> None:
    assert OTHER.keys() == {field.name for field in fields(CacheKey)}
    digests = {KEY.digest()} | {replace(KEY, **{name: value}).digest() for name, value in OTHER.items()}  # type: ignore[arg-type]
    assert len(digests) == 1 + len(OTHER)
    assert all(len(digest) == 32 and set(digest) <= set("0123456789abcdef") for digest in digests)


@pytest.mark.parametrize("name", [field.name for field in fields(TINY)])
def test_every_size_of_a_geometry_changes_the_digest_and_its_name_does_not(name: str) -> None:
    value = getattr(TINY, name)
    other = f"{value}x" if isinstance(value, str) else (*value, 1) if isinstance(value, tuple) else value + 1
    assert (key(network=replace(TINY, **{name: other}).facts()).digest() == KEY.digest()) == (name == "name")


def test_the_order_of_views_changes_the_digest_and_that_of_versions_does_not() -> None:
    assert key(views=KEY.views[::-1]).digest() != KEY.digest()
    assert key(versions=dict(reversed(KEY.versions.items()))).digest() == KEY.digest()


def test_a_key_comes_back_from_json() -> None:
    back = CacheKey.of_facts(json.loads(json.dumps(KEY.facts())))
    assert back == KEY and back.digest() == KEY.digest()


def test_a_digest_is_the_same_in_every_process() -> None:
    """Python's own hashes differ between processes."""
    code = "from entries import KEY; print(KEY.digest())"
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    process = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    assert process.stdout.strip() == KEY.digest()


def test_weights_up_to_the_cut_change_the_digest() -> None:
    weights = TINY.draw(3, "he", lambda stage: stage)
    for stage, layer in enumerate(LAYER_NAMES, start=1):
        for name in (f"{layer}.weight", f"{layer}.bias"):
            changed = weights[name].clone()
            changed.view(-1)[-1] = changed.view(-1)[-1].nextafter(torch.tensor(9.0))
            other = {**weights, name: changed}
            for cut in range(1, 7):
                assert (state_digest(other, TINY, cut) == state_digest(weights, TINY, cut)) == (stage > cut)
    assert len({state_digest(weights, TINY, cut) for cut in range(1, 7)}) == 6


def test_weights_change_the_digest_by_value_not_by_memory_order() -> None:
    weights = TINY.draw(3, "he", lambda stage: stage)
    moved = {
        name: w.contiguous(memory_format=torch.channels_last) if w.ndim == 4 else w.clone()
        for name, w in reversed(weights.items())
    }
    assert state_digest(moved, TINY, 6) == state_digest(weights, TINY, 6)
    with pytest.raises(TypeError, match="float32"):
        state_digest({name: w.bfloat16() for name, w in weights.items()}, TINY, 1)


def test_means_and_images_change_their_digests() -> None:
    mean = torch.rand(4, 4, 3)
    assert means_digest(mean) == means_digest(mean.clone())
    assert means_digest(mean) != means_digest(mean + 1)
    rows = np.arange(5)
    digests = [
        images_digest("s", "train", rows),
        images_digest("t", "train", rows),
        images_digest("s", "val", rows),
        images_digest("s", "train", rows[::-1]),
        images_digest("s", "train", rows[:4]),
    ]
    assert len(set(digests)) == 5
    assert images_digest("s", "train", np.arange(10, dtype=np.int32)[:5]) == digests[0]


def test_versions_change_with_what_computes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    facts = versions("cpu")
    assert facts == versions("cpu")
    assert all(isinstance(value, str) and value for value in facts.values())
    assert versions("cpu", is_jpeg=True).keys() > facts.keys()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "9.9")
        assert versions("cpu") != facts
    with monkeypatch.context() as patch:
        patch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
        assert versions("cpu") != facts
    keys._sources.cache_clear()
    with monkeypatch.context() as patch:
        changed = Path(caffenet.__file__).read_bytes() + b"#"
        patch.setattr(Path, "read_bytes", lambda path: changed)
        assert versions("cpu")["network"] != facts["network"]
    keys._sources.cache_clear()


@pytest.mark.skipif(bool(native.why_not()), reason="the native library is not loaded")
def test_the_native_library_is_named_by_its_digest_and_its_absence_too(monkeypatch: pytest.MonkeyPatch) -> None:
    assert re.fullmatch(r"[0-9a-f]{32}", versions("cpu")["native library"])
    monkeypatch.setattr(torch.ops, "loaded_libraries", set())
    assert versions("cpu")["native library"] == "PyTorch"
