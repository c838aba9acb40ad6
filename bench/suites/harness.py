"""The one harness of all benchmarks: pytest-benchmark, with the variants of one piece of work timed in turn.

The load of a shared machine comes and goes. So every round times each variant once, and a ratio is the median of the
ratios within rounds: a load that slows both hardly changes it. Results are pytest-benchmark's JSON; the seconds of all
variants, round by round, are in `extra_info`.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from fasttransfer.core import devices, machine
from fasttransfer.core.errors import InputError
from fasttransfer.core.files import make_folder, replace_file
from fasttransfer.core.progress import format_duration
from fasttransfer.study import environment

SUITES = Path(__file__).with_name("test_suites.py")
CACHES = 128 << 20  # bytes: inputs are rotated until they take more than this
ROUNDS, QUICK_ROUNDS = 7, 3
TRIES, TOLERANCE = 3, 0.2  # of the guard, see `shrunk`
ELSEWHERE = 0.5  # its tolerance on another kind of machine than was recorded
_SAME_MACHINE = ("processor", "instructions", "cores", "threads", "cuda")  # where ratios may be expected to be equal

Call = Callable[[int], object]
"""Work to time, called with a running number to choose among equal inputs, so that no cache holds them."""
Samples = dict[str, list[float]]
"""Variant -> seconds per call in each round; the first variant is ours."""


def ratio(seconds: Mapping[str, Sequence[float]], theirs: str) -> float:
    """Return how many times as long `theirs` takes as ours, the first variant: the median over rounds."""
    ours = next(iter(seconds.values()))
    return statistics.median(a / b for a, b in zip(seconds[theirs], ours, strict=True))


def lines(entry: Mapping[str, Any]) -> list[str]:
    """Return the table of one benchmark of a JSON file: seconds and rate of every variant, and its ratio to ours."""
    info = entry["extra_info"]
    seconds, (work, unit) = info["seconds"], info["work"]
    found = [entry["name"]]
    for name, samples in seconds.items():
        taken = statistics.median(samples)
        spent = f"{taken * 1e3:,.2f} ms" if taken >= 1e-3 else f"{taken * 1e6:,.1f} us"
        times = f"{ratio(seconds, name):.2f}x"
        found.append(f"    {name:36}{spent:>14}{_rate(work / taken, unit):>20}{times:>10}")
    return found


def show(benchmark: Any) -> None:
    """Print the table of a benchmark that has just been recorded, below its name; pytest must not capture it (-s)."""
    print(*lines({"name": benchmark.name, "extra_info": benchmark.extra_info})[1:], sep="\n", flush=True)


def _rate(rate: float, unit: str) -> str:
    return f"{rate / 1e9:,.1f} GB/s" if unit == "bytes" else f"{rate:,.0f} {unit}/s"


def shrunk(seconds: Samples, recorded: Sequence[Samples], *, tolerance: float = 0.0) -> list[str]:
    """Return what has become slower: variants that take fewer times as long as ours than in every recorded round.

    Args:
        seconds: of the rounds now; the first variant is ours.
        recorded: of earlier runs.
        tolerance: the share of the least recorded ratio that may be missing; by default the range of the recorded
            ones, a fifth to a half.
    """
    found = []
    ours = next(iter(seconds))
    for name in list(seconds)[1:]:
        runs = [[a / b for a, b in zip(run[name], run[ours], strict=True)] for run in recorded if name in run]
        if not runs or name == "copy":
            continue
        spread = max((max(run) - min(run)) / statistics.median(run) for run in runs)
        allowed = tolerance or min(0.5, max(TOLERANCE, spread))
        bound = min(map(min, runs)) * (1 - allowed)
        if ratio(seconds, name) < bound:
            found.append(f"{name} takes {ratio(seconds, name):.2f}x as long, at least {bound:.2f}x is expected")
    return found


def copying(traffic: int, device: torch.device) -> Call:
    """Return a plain copy that reads and writes `traffic` bytes together, past the caches: the bound of the memory."""
    count = max(1, traffic // 2)
    places = max(1, -(-CACHES // count))
    source = torch.randint(0, 256, (places, count), dtype=torch.uint8, device=device)
    target = torch.empty_like(source).fill_(0)
    return lambda i: target[i % places].copy_(source[i % places])


def emulates(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether a device multiplies matrices of a dtype in other arithmetic, at a fraction of its speed."""
    native = device.type == "cuda" or bool({"avx512_bf16", "amx_bf16"} & set(machine.instructions()))
    return dtype == torch.bfloat16 and not native


class Rounds:
    """Times variants in turn, after warm-up calls that also compile.

    Args:
        sample: seconds a sample takes at least, by repeating the call.
        lead: calls before each sample, so that what a loader made ahead while others had their turn is not counted.

    Attributes:
        variants: those that are timed.
        failed: variant -> why it cannot be timed. Others than ours may fail, as PyTorch's compiler does in places.
    """

    def __init__(self, variants: Mapping[str, Call], device: torch.device, *, sample: float = 0.01, lead: int = 0):
        self.variants, self.failed, self._device, self._lead = dict(variants), dict[str, str](), device, lead
        self._repeats = dict.fromkeys(variants, 1)
        ours = next(iter(variants))
        for name, call in variants.items():
            try:
                for i in range(1 + lead):
                    call(i)
                self._repeats[name] = max(1, round(sample / max(self.time(name), 1e-7)))
            except RuntimeError as error:
                if name == ours:
                    raise
                del self.variants[name]
                self.failed[name] = str(error).partition("\n")[0]

    def prepare(self, name: str) -> None:
        """Make the calls that come before a sample."""
        for i in range(self._lead):
            self.variants[name](i)
        self._wait()

    def repeat(self, name: str) -> int:
        """Make the calls of one sample, wait for the device, and return their number."""
        for i in range(self._repeats[name]):
            self.variants[name](i)
        self._wait()
        return self._repeats[name]

    def time(self, name: str) -> float:
        """Return the seconds per call of one sample."""
        self.prepare(name)
        start = time.perf_counter()
        calls = self.repeat(name)
        return (time.perf_counter() - start) / calls

    def run(self, rounds: int) -> Samples:
        """Return the seconds per call of `rounds` samples of each variant."""
        samples: Samples = {name: [] for name in self.variants}
        for _ in range(rounds):
            for name in self.variants:
                samples[name].append(self.time(name))
        return samples

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


# -- pytest ---------------------------------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fasttransfer")
    group.addoption("--quick", action="store_true", help="fewer samples, smaller batches, nothing compiled")
    group.addoption("--device", help="cpu or cuda; by default a GPU where there is one")
    group.addoption("--data", type=Path, help="images to decode and feed; by default some are drawn")
    group.addoption("--only", default="", help="run only the cases whose names contain this")
    group.addoption("--baseline", type=Path, action="append", help="an earlier run: fail where a ratio has shrunk")
    group.addoption("--epochs", type=float, help="length of training in the study of test_grid")
    group.addoption("--classes", type=int, help="classes per task in the study of test_grid")
    group.addoption("--without-plain", action="store_true", help="leave plain PyTorch out of test_grid")
    group.addoption("--quick-grid", action="store_true", help="one epoch and three cuts in test_grid")


class Progress:
    """Prints before each case which it is and about how long the rest takes, and what is left out and why.

    Attributes:
        left_out: a line for each case, or variant of one, that is not measured here.
    """

    def __init__(self) -> None:
        self.left_out: list[str] = []
        self._start, self._done, self._total = time.perf_counter(), 0, 0

    def leave_out(self, what: str) -> None:
        """Note and print what is not measured, with the reason."""
        self.left_out.append(what)
        print(f"    left out: {what}", flush=True)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._total, self._start = len(session.items), time.perf_counter()

    def pytest_runtest_logstart(self, location: tuple[str, int | None, str]) -> None:
        name, rest = location[2].removeprefix("test_"), ""
        if self._done:
            each = (time.perf_counter() - self._start) / self._done
            rest = f", about {format_duration(each * (self._total - self._done))} left"
        print(f"[{self._done + 1} of {self._total}{rest}] {name}", flush=True)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and isinstance(report.longrepr, tuple):
            name = report.location[2].removeprefix("test_")
            self.leave_out(f"{name}: {report.longrepr[2].removeprefix('Skipped: ')}")
        self._done += report.when == "teardown"


_PROGRESS = pytest.StashKey[Progress]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_PROGRESS] = next((p for p in config.pluginmanager.get_plugins() if type(p) is Progress), Progress())
    if not config.pluginmanager.is_registered(config.stash[_PROGRESS]):
        config.pluginmanager.register(config.stash[_PROGRESS])


@pytest.fixture
def leave_out(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Call it with a variant that is not measured here, and why."""
    return request.config.stash[_PROGRESS].leave_out


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    only = config.getoption("only")
    items[:] = [item for item in items if only in item.name]


def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, str] | None:
    """Print no letters for tests: the tables are output enough."""
    if report.skipped or (report.passed and report.when == "call"):
        return report.outcome, "", ""
    return None


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """Describe the machine as studies do; the host's name stays out of what is committed."""
    machine_info.clear()
    machine_info.update(describe())


@pytest.hookimpl(tryfirst=True)
def pytest_benchmark_generate_json(benchmarks: list[Any]) -> None:
    """Leave out a benchmark that was interrupted before its first sample, which pytest-benchmark cannot save."""
    benchmarks[:] = [each for each in benchmarks if each.stats.data]


def describe() -> dict[str, str]:
    """Return the facts about this machine to store beside results."""
    return environment.describe_machine() | {"threads": str(torch.get_num_threads())}


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    """The device to measure, which keeps freed memory as a study's workers do."""
    name = devices.choose_device(request.config.getoption("device"))
    if name == "cpu":
        devices.keep_freed_memory()
    return torch.device(name)


@pytest.fixture(scope="session")
def quick(request: pytest.FixtureRequest) -> bool:
    """Rough numbers in a fraction of the time."""
    return bool(request.config.getoption("quick"))


@dataclass(frozen=True)
class Baseline:
    """The recorded benchmarks that this run is compared with: of this kind of machine, or of others."""

    runs: Sequence[Mapping[str, Any]]  # name -> entry, see `read`
    tolerance: float  # see `shrunk`

    def shrunk(self, name: str, seconds: Samples) -> list[str] | None:
        """Return what has become slower in a case; None where it was not recorded."""
        recorded = [run[name]["extra_info"]["seconds"] for run in self.runs if name in run]
        return shrunk(seconds, recorded, tolerance=self.tolerance) if recorded else None


@pytest.fixture(scope="session")
def baseline(request: pytest.FixtureRequest) -> Baseline | None:
    """The earlier runs on this kind of machine; where there are none, those on others with the same kind of device."""
    paths = request.config.getoption("baseline")
    if not paths:
        return None
    recorded, here = [read(path) for path in paths], describe()

    def on_same(*keys: str) -> list[Mapping[str, Any]]:
        return [run["benchmarks"] for run in recorded if all(run["machine_info"].get(k) == here.get(k) for k in keys)]

    same = on_same(*_SAME_MACHINE)
    return Baseline(same, 0.0) if same else Baseline(on_same("cuda"), ELSEWHERE)


@pytest.fixture
def compare(
    benchmark: Any,
    request: pytest.FixtureRequest,
    device: torch.device,
    quick: bool,
    baseline: Baseline | None,
    leave_out: Callable[[str], None],
) -> Iterator[Callable[..., Samples]]:
    """Yield a function that times variants of the same work in turn, records and prints them: see `run` below.

    pytest-benchmark times the first variant, ours; the others have their turn in the set-up of each of its rounds.
    """

    def run(variants: Mapping[str, Call], *, work: float, unit: str = "images", **facts: Any) -> Samples:
        """Args: variants: ours first; work: how many of `unit` a call does; facts: what else the JSON should hold,
        and the arguments of `Rounds`.
        """
        settings = {name: facts.pop(name) for name in ("sample", "lead") if name in facts}
        timer = Rounds(variants, device, **settings)
        benchmark.name = benchmark.name.removeprefix("test_")
        for name, why in timer.failed.items():
            leave_out(f"{name} in {benchmark.name}: {why}")
        ours, *others = timer.variants
        samples: Samples = {name: [] for name in timer.variants}

        def set_up() -> None:
            for name in others:
                samples[name].append(timer.time(name))
            timer.prepare(ours)

        benchmark.group = request.node.originalname.removeprefix("test_")
        calls = benchmark.pedantic(timer.repeat, (ours,), setup=set_up, rounds=QUICK_ROUNDS if quick else ROUNDS)
        samples[ours] = [seconds / calls for seconds in benchmark.stats.stats.data]
        info = {"work": [work, unit], "seconds": {k: [float(f"{s:.4g}") for s in v] for k, v in samples.items()}}
        benchmark.extra_info.update(info | facts)
        show(benchmark)
        if baseline is not None:
            _guard(baseline, benchmark.name, samples, timer)
        return samples

    yield run
    torch.compiler.reset()


def _guard(baseline: Baseline, name: str, samples: Samples, timer: Rounds) -> None:
    """Fail where a ratio is smaller than the baseline's, and is so again in two further tries."""
    for _ in range(TRIES - 1):
        found = baseline.shrunk(name, samples)
        if found is None:
            pytest.skip("no baseline has this case on this kind of device")
        if not found:
            return
        samples = timer.run(ROUNDS)
    if found := baseline.shrunk(name, samples):
        pytest.fail(f"{name}: {'; '.join(found)}", pytrace=False)


def read(path: Path) -> dict[str, Any]:
    """Return a JSON file of a benchmark, with its `benchmarks` by name.

    Raises:
        InputError: the file cannot be read, or a benchmark did not write it.
    """
    try:
        found = json.loads(path.read_text())
        found["benchmarks"] = {entry["name"]: entry for entry in found["benchmarks"]}
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({(error.strerror or str(error)).lower()})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: is no result of a benchmark: name a file that fasttransfer bench wrote") from error
    return dict(found)


def write_page(results: Mapping[str, Any], left_out: Sequence[str]) -> str:
    """Return a page in Markdown: the machine, a table of every case, and what was left out and why.

    Args:
        results: see `read`.
    """
    facts = [f"* {name}: {fact}" for name, fact in results["machine_info"].items() if name != "operators"]
    rows = []
    for name, entry in results["benchmarks"].items():
        info = entry["extra_info"]
        ours, *others = info["seconds"]
        work, unit = info["work"]
        taken = statistics.median(info["seconds"][ours])
        ratios = ", ".join(f"{other} {ratio(info['seconds'], other):.2f}x" for other in others)
        rows.append(f"| {name} | {ours} | {taken * 1e3:,.2f} ms | {_rate(work / taken, unit)} | {ratios} |")
    return "\n".join(
        [
            "# fasttransfer bench",
            "",
            *facts,
            "",
            "The last column has how many times as long the others take: medians of the ratios within rounds.",
            "",
            "| | variant | time | rate | compared with |",
            "|---|---|---|---|---|",
            *rows,
            "",
            "## Left out",
            "",
            *([f"* {what}" for what in left_out] or ["Nothing."]),
            "",
        ]
    )


# -- fasttransfer bench ---------------------------------------------------------------------------------------------


class _Refusals:
    """The bad input that a case met, which the command reports instead of a traceback per case."""

    def __init__(self) -> None:
        self.refused: InputError | None = None

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if call.excinfo is not None and isinstance(call.excinfo.value, InputError):
            self.refused = call.excinfo.value
            report.outcome, report.longrepr = "passed", None
        return report


def run(
    suite: str, *, out: Path | None = None, baseline: Sequence[Path] = (), page: Path | None = None, **options: Any
) -> int:
    """Run one suite, "operators", "step", "feed" or "grid", or "all"; return the exit code: 1 if a ratio has shrunk.

    Args:
        out: the JSON file to write.
        baseline: the JSON files of earlier runs.
        page: the Markdown file to write, with what is in the JSON file and what was left out.
        options: the values of pytest's options, see `pytest_addoption`; false and None are left out.

    Raises:
        InputError: no case has that name, a device or file is missing, or the images make no benchmark.
    """
    devices.choose_device(options.get("device"))
    for path in baseline:
        read(path)
    if out is not None:
        make_folder(out.parent)
    arguments = [
        str(SUITES) if suite == "all" else f"{SUITES}::test_{suite}",
        "-p",
        __name__,
        "-p",
        "no:cacheprovider",
        "-p",
        "no:warnings",
        "-c",
        os.devnull,
    ]
    arguments += ["--rootdir", str(SUITES.parent), "--import-mode=importlib", "-s", "-q", "--no-header"]
    arguments += ["--benchmark-quiet", "--benchmark-disable-gc"]
    written = None if out is None else out.with_name(f".{out.name}.part")
    arguments += [f"--baseline={path}" for path in baseline]
    for name, value in {**options, "benchmark_json": written}.items():
        if value is not None and value is not False and value != "":
            option = name.replace("_", "-")
            arguments.append(f"--{option}" if value is True else f"--{option}={value}")
    refusals, progress = _Refusals(), Progress()
    try:
        code = pytest.main(arguments, plugins=[refusals, progress])
        if refusals.refused is not None:
            raise refusals.refused
        if code == pytest.ExitCode.NO_TESTS_COLLECTED:
            raise InputError(f"--only {options.get('only')}: no case of bench {suite} has that in its name")
        if out is not None and written is not None and written.stat().st_size:
            written.replace(out)  # also when it was interrupted: with what was measured until then
            if page is not None:
                with replace_file(page) as file:
                    file.write(write_page(read(out), progress.left_out).encode())
        if code == pytest.ExitCode.INTERRUPTED:
            raise KeyboardInterrupt
    finally:
        if written is not None:
            written.unlink(missing_ok=True)
    return int(code)
