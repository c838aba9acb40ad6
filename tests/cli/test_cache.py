"""`fasttransfer cache …`, in this process, on a cache of three small entries."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from entries import INFO, KEY, find, is_same, key, make
from safetensors import safe_open
from studies import quiet, tiny_choices
from torch import Tensor

from fasttransfer import cli
from fasttransfer.features import cache, export
from fasttransfer.study.configuration import Feeding
from fasttransfer.training import grid

pytest.importorskip("fasttransfer.features._shards")


@pytest.fixture
def three(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[int, Tensor]:
    """Make entries of cuts 1, 5 and 6, last used in the order 5, 6, 1, and return their records."""
    monkeypatch.setenv("FASTTRANSFER_CACHE", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    records = {}
    for cut, last in ((1, 30), (5, 10), (6, 20)):
        records[cut] = make(cache.cache_root(), key(cut=cut), info=replace(INFO, network=f"base{cut}"))
        os.utime(find(cache.cache_root(), key(cut=cut)).folder / "uses", (last, last))
    return records


def run(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    """Run `fasttransfer cache` and return its output."""
    capsys.readouterr()
    assert cli.run(["cache", *words]) == code
    printed = capsys.readouterr()
    return printed.out if code != 2 else printed.err


def folder_of(cut: int) -> Path:
    return cache.cache_root() / key(cut=cut).digest()


def damage(cut: int) -> None:
    """Flip a bit of the first record."""
    path = folder_of(cut) / "00000.shard"
    content = bytearray(path.read_bytes())
    content[128] ^= 1
    path.write_bytes(content)


def test_list_shows_entries_errors_and_quarantine(three: dict[int, Tensor], capsys: pytest.CaptureFixture[str]) -> None:
    find(cache.cache_root(), key(cut=5)).count_use()
    (folder_of(6) / "entry.json").unlink()
    (cache.cache_root() / f"{'a' * 32}.damaged").mkdir()
    lines = run(capsys, "list").splitlines()
    assert lines[0].split() == ["entry", "features", "of", "size", "share", "used", "last"]
    assert lines[1].split() == [
        *(folder_of(5).name[:8], "base5", "cut", "5", "10", "train", "of", "builtin", "B", "in", "2", "views"),
        *("0", "MB", f"{find(cache.cache_root()).bytes / three[5].nbytes:.0%}", "1", "0", "s", "ago"),
    ]
    assert "base1 cut 1" in lines[2]
    assert lines[3] == f"{folder_of(6)}: damaged: its entry.json is missing"
    assert lines[4].endswith("aaaa.damaged: damaged, quarantined: cache prune removes it")
    assert lines[5] == f"2 entries, 0 MB in {cache.cache_root()}"
    assert folder_of(6).exists()


def test_an_empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FASTTRANSFER_CACHE", str(tmp_path / "none"))
    assert "0 entries, 0 MB in" in run(capsys, "list")
    assert "none/features" in run(capsys, "where").replace("\n", "").replace(" ", "")
    assert run(capsys, "verify") == "0 entries are as they were written (0 MB)\n"
    run(capsys, "prune", "--max-size", "0")
    assert "no entry of the cache begins so" in run(capsys, "show", "abc", code=2)


def test_show_prints_the_facts_of_one_entry(three: dict[int, Tensor], capsys: pytest.CaptureFixture[str]) -> None:
    output = run(capsys, "show", folder_of(5).name[:6])
    for what in (folder_of(5).name, "base5", "/runs/some", "1,1; 1,1 mirrored", "fp32 on cpu, 1 threads, batches of 8",
                 KEY.prefix, "CaffeNet", "2 classes", "8 x 1 x 1"):  # fmt: skip
        assert what in output
    assert "3 entries begin so" in run(capsys, "show", "", code=2)
    damage_of_manifest = folder_of(1) / "entry.json"
    damage_of_manifest.write_text("{}")
    assert "it cannot be read" in run(capsys, "show", folder_of(1).name, code=2)


def test_verify_quarantines_damaged_entries(three: dict[int, Tensor], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "verify").startswith("3 entries are as they were written")
    damage(5)
    assert run(capsys, "verify", folder_of(1).name, folder_of(6).name).startswith("2 entries")
    output = run(capsys, "verify", code=1)
    assert "00000.shard: damaged: record 0 does not match its checksum; the entry is quarantined as" in output
    assert output.splitlines()[-1].endswith("1 cannot be used")
    assert not folder_of(5).exists()
    assert run(capsys, "verify").startswith("2 entries")


def test_prune_removes_by_name_and_by_size(three: dict[int, Tensor], capsys: pytest.CaptureFixture[str]) -> None:
    assert "name entries, or say what may stay" in run(capsys, "prune", code=2)
    for text in ("ten", "-1", "10 G B", "", "1e3"):
        assert "is no size" in run(capsys, "prune", f"--max-size={text}", code=2)
    most = sum(find(cache.cache_root(), key(cut=cut)).bytes for cut in (1, 6))
    output = run(capsys, "prune", "--max-size", str(most))
    assert output.startswith(
        f"{folder_of(5).name[:8]}: removed (base5 cut 5, 10 train of builtin B in 2 views, 0 MB)\n"
    )
    (folder_of(6) / "entry.json").write_text("nothing that could be read")
    (cache.cache_root() / f"{'a' * 32}.damaged").mkdir()
    run(capsys, "prune", folder_of(6).name)
    assert [path.name for path in cache.cache_root().iterdir() if not path.name.startswith(".")] == [folder_of(1).name]
    for text in ("0.5GB", "10 mb", "1T"):
        run(capsys, "prune", "--max-size", text)
    assert folder_of(1).exists()
    run(capsys, "prune", "--max-size", "0")
    assert not folder_of(1).exists()


@pytest.mark.parametrize("cut", [1, 6])
def test_export_for_numpy(
    three: dict[int, Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    cut: int,
) -> None:
    monkeypatch.setattr(export, "_CHUNK_BYTES", 3 * 2 * three[cut][0].numel())  # three records
    out = tmp_path / "some" / "features.npy"
    assert len(run(capsys, "export", folder_of(cut).name, str(out)).splitlines()) == 5
    features = np.load(out, mmap_mode="r")
    assert features.dtype == np.float32
    assert np.array_equal(features, three[cut].float().contiguous().numpy().reshape(10, 2, *three[cut].shape[1:]))
    beside = {name: np.load(tmp_path / "some" / f"features-{name}.npy") for name in ("ids", "labels", "views")}
    assert beside["ids"].tolist() == list(range(0, 30, 3)) and beside["labels"].tolist() == [0, 1] * 5
    assert beside["views"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert json.loads((tmp_path / "some" / "features.json").read_text())["about"]["classes"] == ["cat", "dog"]


@pytest.mark.parametrize("cut", [1, 6])
def test_export_for_safetensors(
    three: dict[int, Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    cut: int,
) -> None:
    monkeypatch.setattr(export, "_CHUNK_BYTES", 3 * 2 * three[cut][0].numel())  # three records
    out = tmp_path / "features.safetensors"
    run(capsys, "export", folder_of(cut).name, str(out))
    with safe_open(out, "pt") as file:
        assert is_same(file.get_tensor("features").flatten(0, 1), three[cut].contiguous())
        assert file.get_tensor("ids").tolist() == list(range(0, 30, 3))
        assert file.get_tensor("labels").tolist() == [0, 1] * 5
        assert torch.equal(file.get_tensor("views"), torch.tensor(KEY.views).long())
        assert json.loads(file.metadata()["fasttransfer"])["entry"] == folder_of(cut).name


def test_export_refuses_other_suffixes_existing_files_and_damage(
    three: dict[int, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = folder_of(5).name
    assert "a .npy or a .safetensors" in run(capsys, "export", name, str(tmp_path / "x.pt"), code=2)
    (tmp_path / "x-ids.npy").touch()
    assert "x-ids.npy: is there already" in run(capsys, "export", name, str(tmp_path / "x.npy"), code=2)
    damage(5)
    output = run(capsys, "export", name, str(tmp_path / "y.safetensors"), code=2)
    assert "record 0 does not match" in output and output.endswith("run again what made it\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["features", "x-ids.npy"]


def test_plan_prints_decisions_and_keeps_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FASTTRANSFER_CACHE", str(tmp_path / "cache"))
    choices = tiny_choices(tmp_path)
    words = ("plan", "--data", choices.data, "--recipe", str(choices.recipe))
    assert "give --views 1, 2 or 10" in run(capsys, *words, code=2)
    lines = run(capsys, *words, "--views", "2", "--layers", "3", "7").splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["cut", "3", "6"]
    assert all(line.split()[-1] in ("kept", "live") for line in lines[2:])
    assert cache.list_folders(cache.cache_root()) == []


def test_build_makes_the_entries_that_a_study_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FASTTRANSFER_CACHE", str(tmp_path / "cache"))
    choices = tiny_choices(tmp_path, views=2, layers=(3, 7), treatments=("transfer",), targets=("B",))
    out = tmp_path / "run"
    assert grid.run(choices, out, feeding=Feeding(features="cache"), console=quiet())
    entries = {entry.folder.name: entry for entry in cache.list_entries(cache.cache_root())}
    assert len(entries) == 4
    bytes_ = {name: (entry.folder / "00000.shard").read_bytes() for name, entry in entries.items()}
    run(capsys, "prune", "--max-size", "0")
    words = ("build", str(out), "--network", "baseA", "--task", "B", "--views", "2")
    lines = run(capsys, *words, "--cuts", "7", "3").splitlines()
    assert [line.split(",")[0].split(" ", 1)[1] for line in lines] == [f"baseA.s0 cut {cut}" for cut in (3, 6, 3, 6)]
    assert {
        folder.name: (folder / "00000.shard").read_bytes() for folder in cache.list_folders(cache.cache_root())
    } == bytes_
    times = {folder: folder.stat().st_ctime_ns for folder in cache.list_folders(cache.cache_root())}
    assert run(capsys, *words, "--cuts", "3", "6").splitlines() == lines
    assert {folder: folder.stat().st_ctime_ns for folder in times} == times
    assert "choose among 1 to 7" in run(capsys, *words, "--cuts", "8", code=2)
    assert "has no network baseC" in run(capsys, "build", str(out), "--network", "baseC", code=2)
