"""A study whose operations on files fail, are cut short or are its last ends, in the end, as one left alone.

The study prepares images, caches frozen features, trains and records, see tests/trials.py. How many operations are
tried, and which, is up to --fault-trials and --fault-seed: `make test-faults` tries many.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest
from power_loss import cut_power, finish, read_log
from studies import MANMADE, NATURAL, draw_images, same_study
from trials import INPUT_ERROR, Fault, Mode, Outcome, Trials

KILLED = -9
SHARED_MEMORY = Path("/dev/shm")  # where fsync costs nothing


@dataclass
class Bench:
    """The program that runs trials in `folder`, a study left alone with its number of operations, and the draws."""

    trials: Trials
    folder: Path
    alone: Path
    operations: int
    random: Random
    count: int

    def start(self) -> None:
        """Begin with an empty folder."""
        shutil.rmtree(self.folder / "files", ignore_errors=True)
        (self.folder / "files").mkdir()

    def run(self, mode: Mode = Mode.OFF, at: int = 0, error: int = 0) -> Outcome:
        return self.trials.run(self.folder, Fault(mode, at, error))

    def kill(self, mode: Mode, at: int) -> int:
        """Run a study from the beginning that an operation ends; return which.

        It is `at`, or the last one that there was: records are written as results come, some together, so that no two
        runs have the same number of operations.
        """
        while True:
            self.start()
            outcome = self.run(mode, at)
            if outcome.code == KILLED:
                return at
            assert outcome.code == 0 and outcome.operations < at, outcome.text
            at = outcome.operations

    def places(self) -> list[int]:
        """Return the operations to disturb: evenly spread ones from a drawn one on, or all."""
        step = max(1, self.operations // self.count)
        return list(range(1 + self.random.randrange(step), self.operations + 1, step))[: self.count]

    def check(self) -> None:
        """Let the study end without faults, and compare it with the one left alone."""
        outcome = self.run()
        assert outcome.code == 0, outcome.text
        same_study(self.alone / "run", self.folder / "files" / "run")
        ours, theirs = stored(self.folder / "files"), stored(self.alone)
        # What a cache could not keep, or networks that had ended would read, is not made again.
        assert {name: theirs.get(name) for name in ours} == ours
        assert all("/features/" in name or "cache/means/" in name for name in theirs.keys() - ours.keys())
        left = [path for path in (self.folder / "files").rglob("*.tmp") if path.is_file()]
        assert all(path.parent.name == "means" for path in left)  # removed when they are an hour old


def stored(files: Path) -> dict[str, bytes]:
    """Return path -> bytes of prepared images, mean images and cached features, apart from what says when."""
    kinds = ("cache/**/*.npy", "cache/**/*.shard", "run/means/*.npy")
    return {str(path.relative_to(files)): path.read_bytes() for kind in kinds for path in sorted(files.glob(kind))}


@pytest.fixture(scope="module")
def trials(interposer: Path) -> Iterator[Trials]:
    with Trials(interposer) as program:
        yield program


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder, in memory where possible."""
    folder = tmp_path_factory.mktemp("trials")
    if os.access(SHARED_MEMORY, os.W_OK) and shutil.disk_usage(SHARED_MEMORY).free > 64 << 20:
        folder = SHARED_MEMORY / f"fasttransfer-trials-{os.getpid()}"
        folder.mkdir()
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def bench(trials: Trials, place: Path, request: pytest.FixtureRequest) -> Bench:
    draw_images(place / "images", NATURAL[:2] + MANMADE[:2], train=8, val=4)
    random = Random(request.config.getoption("--fault-seed"))
    bench = Bench(trials, place, place / "alone", 0, random, request.config.getoption("--fault-trials"))
    bench.start()
    outcome = bench.run(Mode.COUNT)
    assert outcome.code == 0, outcome.text
    bench.operations = outcome.operations
    assert bench.operations > 300
    (place / "files").rename(bench.alone)
    return bench


def test_killed_before_or_amid_an_operation_and_again_as_it_resumes(bench: Bench) -> None:
    for at in bench.places():
        at = bench.kill(bench.random.choice([Mode.KILL, Mode.TEAR]), at)
        left = max(1, bench.operations - at)
        again = bench.run(Mode.TEAR, bench.random.randint(1, left))
        assert again.code in (0, KILLED), again.text
        bench.check()


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT], ids=errno.errorcode.get)
@pytest.mark.parametrize("mode", [Mode.FAIL_ONCE, Mode.FAIL_FROM], ids=lambda mode: mode.name)
def test_operations_that_fail_end_the_study_with_a_sentence(bench: Bench, mode: Mode, error: int) -> None:
    for at in bench.places():
        bench.start()
        outcome = bench.run(mode, at, error)
        assert outcome.code in (0, INPUT_ERROR), f"operation {at}: {outcome.text}"
        if outcome.code:
            assert "\n" not in outcome.text and str(bench.folder / "files") in outcome.text
        bench.check()


def test_writes_that_do_half_are_continued(bench: Bench) -> None:
    bench.start()
    outcome = bench.run(Mode.SHORTEN)
    assert outcome.code == 0, outcome.text
    bench.check()


def test_power_cuts_lose_nothing_that_was_recorded(bench: Bench, tmp_path: Path) -> None:
    bench.start()
    files, log = bench.folder / "files", tmp_path / "log"
    assert bench.trials.run(bench.folder, Fault(Mode.COUNT), log).code == 0
    operations = read_log(log)
    on_disk = {str(path): path.read_bytes() if path.is_file() else None for path in files.rglob("*")}
    assert finish(operations) == on_disk, "the log misses an operation"
    for end in range(1, len(operations), max(1, len(operations) // bench.count)):
        bench.start()
        for name, contents in sorted(cut_power(operations[:end], bench.random).items()):
            if contents is None:
                Path(name).mkdir()
            else:
                Path(name).write_bytes(contents)
        bench.check()


def test_processes_that_want_the_same_make_it_once(bench: Bench) -> None:
    """Images and features of one cache, each study in its own folder; then one study in one folder."""
    bench.start()
    count = min(16, 2 * bench.count)
    outs = [f"run{number}" for number in range(count)]
    for outcome in bench.trials.run_together(bench.folder, outs):
        assert outcome.code == 0, outcome.text
    files = bench.folder / "files"
    for out in outs:
        same_study(bench.alone / "run", files / out)
    ours, theirs = stored(files), stored(bench.alone)
    assert all(ours[name] == contents for name, contents in theirs.items() if name.startswith("cache"))
    outcomes = bench.trials.run_together(bench.folder, ["run"] * count)
    assert {outcome.code for outcome in outcomes} <= {0, INPUT_ERROR}
    refused = [outcome.text for outcome in outcomes if outcome.code]
    assert len(refused) < count and all("another run is working here" in text for text in refused)
    bench.check()
