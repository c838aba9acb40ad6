"""Hooks and fixtures of all tests."""

from __future__ import annotations

import gc
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from workers_here import WorkersHere

from fasttransfer.report import files
from fasttransfer.study import records
from fasttransfer.training import grid, workers
from fasttransfer.training.cohort_builder import StudyContext
from fasttransfer.training.workers import Engine, WorkerPool

FEW = 2  # faults where no sweep is asked for
SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("faults", "tests/faults")
    group.addoption("--fault-trials", type=int, default=FEW, help="faults that each test injects")
    group.addoption("--fault-seconds", type=int, default=3, help="time that each fuzzer takes")
    group.addoption("--fault-seed", type=int, default=0, help="decides which")


@pytest.fixture(autouse=True, scope="session")
def _interruptible() -> None:
    """Let programs that tests start be interrupted: a shell makes its background jobs ignore Ctrl-C."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or fills the user's cache; all of one session share one of their own."""
    folder = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("FASTTRANSFER_CACHE", str(folder))


def pytest_collection_finish() -> None:
    """Spare the garbage collector what was imported: each worker, and so each small study, ends with a collection."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()  # else libraries report what was never freed


@pytest.fixture(autouse=True)
def _no_flushing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for the disk at every record of a study: only programs of tests/faults meet power cuts."""
    monkeypatch.setattr(records, "_SYNCHRONOUS", "OFF")


@pytest.fixture(autouse=True)
def _no_xdist(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of pytest that a test starts are by themselves: pytest-benchmark measures nothing in a worker of xdist."""
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)


@pytest.fixture(autouse=True)
def _gpu(request: pytest.FixtureRequest) -> None:
    """Skip tests marked `gpu` on machines without one."""
    if request.node.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no CUDA device")


@pytest.fixture(autouse=True)
def _sweep(request: pytest.FixtureRequest) -> None:
    """Skip tests marked `sweep` where no sweep of faults is asked for."""
    if request.node.get_closest_marker("sweep") and request.config.getoption("--fault-trials") <= FEW:
        pytest.skip("make test-faults runs it")


@pytest.fixture(autouse=True)
def _svg_alone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write figures as SVG only, unless a test is marked `prints`: PDF and PNG take as long as all else of a report."""
    if not request.node.get_closest_marker("prints"):
        monkeypatch.setattr(files, "_KINDS", {"svg": files._KINDS["svg"]})


@pytest.fixture(autouse=True)
def _no_workers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Train in the process of the test unless it is marked `workers`: starting processes takes seconds."""
    if request.node.get_closest_marker("workers"):
        yield
        return
    threads, deterministic = torch.get_num_threads(), torch.backends.cudnn.deterministic

    def open_workers(engine: Engine, setting: StudyContext) -> WorkerPool:
        return WorkersHere(setting) if engine == "local" else workers.open_workers(engine, setting)

    monkeypatch.setattr(grid, "open_workers", open_workers)
    yield
    torch.set_num_threads(threads)
    torch.backends.cudnn.deterministic = deterministic


@pytest.fixture
def shared() -> Path:
    """The folder of real images beside the checkout; tests that need it are skipped where it is absent."""
    if not (SHARED / "data").is_dir():
        pytest.skip("real images (../shared/data) are not on this machine")
    return SHARED
