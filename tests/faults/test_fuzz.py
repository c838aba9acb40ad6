"""The reader of shards and the parsers of files that users name, given any bytes: no crash, no error but their own."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors.torch import save_file
from studies import RECIPE

from fasttransfer.core import tensor_files
from fasttransfer.core.errors import InputError
from fasttransfer.core.tensor_files import CorruptFileError
from fasttransfer.networks.find import find_network
from fasttransfer.networks.pretrained import load_pretrained
from fasttransfer.pipelines.layouts import list_images
from fasttransfer.study.configuration import Study
from fasttransfer.study.recipe import load_recipe
from fasttransfer.study.splits import make_split

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
READER = [CSRC / "shards" / f"{name}.cpp" for name in ("file", "narrow", "checksum")]
FLAGS = ["-std=c++20", "-g", "-O1", f"-I{CSRC}", "-fno-sanitize-recover=undefined"]
LIMITS = {"ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=0", "UBSAN_OPTIONS": "print_stacktrace=1"}


def run(command: list[str]) -> None:
    """Run a program with sanitizers; the libraries that are preloaded for Python's are not for it."""
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"} | LIMITS
    ran = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-4000:]


def test_the_reader_of_shards_reads_or_refuses_what_was_found_before(tmp_path: Path) -> None:
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        pytest.skip("no C++ compiler")
    program, source = str(tmp_path / "replay"), str(HERE / "fuzz_shard.cpp")
    build = [compiler, *FLAGS, "-fsanitize=address,undefined", "-DREPLAY", source, *map(str, READER), "-o", program]
    if subprocess.run(build, capture_output=True).returncode:
        pytest.skip(f"{compiler} has no sanitizers")
    files = sorted((HERE / "corpus").iterdir())
    assert len(files) > 10
    run([program, *map(str, files)])


def test_the_reader_of_shards_reads_or_refuses_any_bytes(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    compiler = shutil.which("clang++")
    if compiler is None:
        pytest.skip("no clang++, whose libFuzzer finds the bytes")
    program, source = str(tmp_path / "fuzz"), str(HERE / "fuzz_shard.cpp")
    build = [compiler, *FLAGS, "-fsanitize=fuzzer,address,undefined", source, *map(str, READER), "-o", program]
    subprocess.run(build, check=True, capture_output=True)
    corpus = shutil.copytree(HERE / "corpus", tmp_path / "corpus")
    seconds, seed = (request.config.getoption(f"--fault-{name}") for name in ("seconds", "seed"))
    found = f"-artifact_prefix={tmp_path}/"
    limits = ["-max_len=4096", "-malloc_limit_mb=512", "-rss_limit_mb=0"]  # its own memory is counted with pytest's
    run([program, f"-max_total_time={seconds}", f"-seed={seed + 1}", *limits, found, str(corpus)])


def mutate(data: bytes, random: Random) -> bytes:
    """Change, cut out, repeat or insert some bytes, or write an extreme number over eight of them."""
    changed = bytearray(data)
    for _ in range(random.choice([1, 1, 2, 8])):
        at, size = random.randrange(len(changed) or 1), random.choice([1, 2, 8, 64])
        match random.randrange(5):
            case 0:
                changed[at : at + 1] = bytes([random.randrange(256)])
            case 1:
                del changed[at : at + size]
            case 2:
                changed[at:at] = changed[at : at + size]
            case 3:
                changed[at:at] = random.randbytes(size)
            case 4:
                changed[at : at + 8] = random.choice([0, 2**31 - 1, 2**63, 2**64 - 1]).to_bytes(8, "little")
    return bytes(changed)


def write_weights(path: Path) -> None:
    save_file({"features.0.weight": torch.zeros(2, 3), "classifier.1.bias": torch.ones(4)}, path)


def write_state(path: Path) -> None:
    torch.save({"features.0.weight": torch.zeros(2, 3)}, path)


def write_archive(path: Path) -> None:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name in ("cat/1.jpg", "cat/2.jpg", "dog/caf\u00e9.jpg", "dog/2.jpg"):
            member = tarfile.TarInfo(name)
            member.size = 3
            archive.addfile(member, io.BytesIO(b"abc"))


def write_study(path: Path) -> None:
    names = 'data = "x"\nimages = "1"\nsplit = "random:0"\ntasks = "2"\nbad_pictures = "fail"\nprecision = "fp32"\n'
    lists = 'layers = [1]\ntreatments = ["transfer"]\ntargets = ["A"]\nseeds = [0]\nthreads = 1\ndevice = "cpu"\n'
    tables = RECIPE.replace("[network]", "[recipe.network]")
    path.write_text(f"version = 2\n{names}{lists}[recipe]\n{tables}")


def read_weights(path: Path) -> object:
    return load_pretrained(find_network("torchvision:alexnet", size=64, weights=str(path)), str(path))


PARSERS: dict[str, tuple[Callable[[Path], object], Callable[[Path], object]]] = {
    "weights.safetensors": (write_weights, read_weights),
    "weights.pth": (write_state, read_weights),
    "network.safetensors": (lambda path: tensor_files.save(path, {"x": torch.ones(3)}, {"step": 1}), tensor_files.load),
    "images.tar": (write_archive, list_images),
    "recipe.toml": (lambda path: path.write_text(RECIPE), lambda path: load_recipe(str(path))),
    "split.toml": (
        lambda path: path.write_text('A = ["cat", "dog"]\nB = ["ant", "bee"]\n'),
        lambda path: make_split(str(path), ("ant", "bee", "cat", "dog")),
    ),
    "study.toml": (write_study, Study.read),
}
"""File -> what writes a sound one, and what reads it."""


def refusal(read: Callable[[Path], object], path: Path) -> str:
    """Return what the user is told of a file; "" where it is read."""
    try:
        read(path)
    except InputError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", PARSERS)
@pytest.mark.filterwarnings("ignore")
def test_parsers_read_or_refuse_any_bytes(tmp_path: Path, name: str, request: pytest.FixtureRequest) -> None:
    """Refused means one sentence, whatever the libraries underneath raise."""
    write, read = PARSERS[name]
    path = tmp_path / name
    write(path)
    sound = path.read_bytes()
    if not name.startswith("weights"):  # which fit no network
        read(path)
    random = Random(request.config.getoption("--fault-seed"))
    end, tries = time.monotonic() + request.config.getoption("--fault-seconds") / 3, 0
    while time.monotonic() < end or tries < 20:
        path.write_bytes(mutate(sound, random))
        tries += 1
        with suppress(CorruptFileError):
            assert "\n" not in refusal(read, path)
