"""SIGKILL in the middle of a study, of its driver or of a worker: it ends with the very bits of one left alone.

The engine makes no difference, nor does going on with another one.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import cast

import forks
import pytest
from studies import quiet, said, same_study, tiny_choices
from waiting import once_there, wait_until

from fasttransfer.study import records
from fasttransfer.study.configuration import Choices, Feeding
from fasttransfer.training import grid
from fasttransfer.training.cohort_builder import StudyContext
from fasttransfer.training.workers import Engine, local

pytestmark = pytest.mark.workers

STEPS = 200


def train(choices: Choices, out: Path, engine: Engine) -> None:
    """Train in a session of its own, with checkpoints as often as possible: kills meet every stage of writing them."""
    os.setsid()
    grid.run(choices, out, feeding=Feeding(engine=engine), console=quiet(), checkpoint_seconds=0.0)


@contextmanager
def driving(choices: Choices, out: Path, engine: Engine) -> Iterator[ForkServerProcess]:
    """The study in a process of its own, which does not outlive the block."""
    driver = forks.context.Process(target=train, args=(choices, out, engine))
    driver.start()
    try:
        yield driver
    finally:
        driver.kill()
        driver.join()


def processes(wanted: Callable[[list[str]], bool]) -> list[int]:
    """Processes that still run (zombies do not), by the fields of /proc/<pid>/stat from the state on."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except (OSError, NotADirectoryError):
            continue
        if wanted(fields) and fields[0] != "Z":
            found.append(int(entry.name))
    return found


def gone(session: int) -> bool:
    """Return whether workers and a session have ended, apart from what watches its Ray cluster for another minute."""
    forker = forkserver._forkserver._forkserver_pid
    left = processes(lambda fields: int(fields[3]) == session or int(fields[1]) == forker)
    return all(command(pid).rstrip(b"\0 ").endswith(b"Agent") for pid in left)


def command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it ended meanwhile
        return b"Agent"


def met(out: Path, pattern: str, driver: ForkServerProcess) -> bool:
    """A file of this pattern is there, or the driver was too fast."""
    return any(out.glob(pattern)) or not driver.is_alive()


def kill_worker() -> None:
    """Kill a worker that trains: there are more jobs than workers when this is called."""
    worker = multiprocessing.active_children()[0].pid
    assert worker is not None
    os.kill(worker, signal.SIGKILL)


def kill_actor() -> None:
    """One of Ray's workers, whose parent is a child of ours."""
    children = processes(lambda fields: int(fields[1]) == os.getpid())
    theirs = processes(lambda fields: int(fields[1]) in children)
    actors = [pid for pid in theirs if command(pid).startswith(b"ray::_WorkerActor")]
    os.kill(actors[0], signal.SIGKILL)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Choices, Path]:
    """A study of two bases and eight copies, and its folder when it is done."""
    folder = tmp_path_factory.mktemp("undisturbed")
    choices = tiny_choices(folder, layers=(2, 7), treatments=("transfer", "selffer+"), steps=STEPS)
    with pytest.MonkeyPatch.context() as patch:  # the cache of the tests is set for one test at a time
        patch.setenv("FASTTRANSFER_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        assert grid.run(choices, folder / "run", console=quiet())
    return choices, folder / "run"


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Start one cluster for all tests: it takes seconds."""
    ray = pytest.importorskip("ray", reason="the extra ray is not installed")
    from fasttransfer.training.workers.ray import _join_cluster

    assert _join_cluster()
    yield
    ray.shutdown()


@pytest.mark.parametrize("second", ["local", pytest.param("ray", marks=pytest.mark.sweep)])
def test_killed_drivers_lose_nothing(undisturbed: tuple[Choices, Path], tmp_path: Path, second: Engine) -> None:
    """Kill each driver in another stage, the second with workers of either kind, which are gone soon after."""
    choices, expected = undisturbed
    out, kills = tmp_path / "run", 0
    for wanted, engine in (("checkpoints/base*", "local"), ("weights/base*", second), ("checkpoints/A*", "local")):
        with driving(choices, out, engine) as driver:
            assert wait_until(partial(met, out, wanted, driver)), wanted
            kills += driver.is_alive()
        assert wait_until(partial(gone, driver.pid or 0)), "workers outlived their driver"
    assert kills == 3
    assert {r.state for r in records.read_results(out).results} != {"done"}
    assert grid.run(choices, out, console=quiet())
    same_study(expected, out)
    leftovers = [p.name for p in out.rglob("*") if p.name.endswith((".tmp", ".damaged"))]
    assert not leftovers


@pytest.mark.parametrize("engine", ["local", pytest.param("ray", marks=pytest.mark.sweep)])
def test_a_killed_worker_is_told_and_its_job_goes_on(
    undisturbed: tuple[Choices, Path], tmp_path: Path, engine: str, request: pytest.FixtureRequest
) -> None:
    choices, expected = undisturbed
    if engine == "ray":
        request.getfixturevalue("cluster")
    kill = {"local": kill_worker, "ray": kill_actor}[engine]
    out, console = tmp_path / "run", quiet()
    with once_there(out, "checkpoints/A*", kill):
        feeding = Feeding(engine=engine)  # type: ignore[arg-type]
        assert grid.run(choices, out, feeding=feeding, console=console, checkpoint_seconds=0.0)
    same_study(expected, out)
    (told,) = [text for _, _, text in records.read_results(out).events if "worker lost" in text]
    assert told.endswith("goes on from checkpoints, try 1 of 3")
    assert "worker lost" in said(console)


@pytest.mark.sweep
@pytest.mark.usefixtures("cluster")
def test_rays_workers_stop_cleanly(undisturbed: tuple[Choices, Path], tmp_path: Path) -> None:
    choices, expected = undisturbed
    out, console = tmp_path / "run", quiet()
    before = signal.getsignal(signal.SIGTERM)
    with once_there(out, "checkpoints/base*", partial(os.kill, os.getpid(), signal.SIGTERM)):
        finished = grid.run(choices, out, feeding=Feeding(engine="ray"), console=console, checkpoint_seconds=0.0)
    assert not finished
    assert "The same command goes on from here" in said(console)
    kept = {path.stem for path in (out / "checkpoints").iterdir()}
    results = records.read_results(out).results
    assert {f"{r.name}.s{r.seed}" for r in results if r.state == "running"} <= kept
    assert {r.state for r in results if r.treatment != "base"} == {"planned"}
    assert signal.getsignal(signal.SIGTERM) == before
    assert grid.run(choices, out, console=quiet())
    same_study(expected, out)


def test_ctrl_c_while_a_worker_starts_does_not_end_it(tmp_path: Path) -> None:
    """A worker blocks the signals until it ignores them; its parent handles them as before."""
    forkserver._forkserver._stop()  # another may be there, which others started
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with closing(local.LocalWorkers(cast(StudyContext, None))) as workers:
        workers.start_worker()
        process = workers._workers[0].process
        status = Path(f"/proc/{process.pid}/status").read_text()
        process.kill()
    blocked = int(next(line for line in status.splitlines() if line.startswith("SigBlk")).split()[1], 16)
    assert all(blocked >> (each - 1) & 1 for each in (signal.SIGINT, signal.SIGTERM))
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
