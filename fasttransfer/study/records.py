"""The results of a study so far: `study.db`, an SQLite file that only the driver process writes.

Tables: `cells` (one row per network), `evaluations` (one row per validation check), `correct` (the validation images
that each network got right at its last check), `events`, `environment`, `facts`.
Nothing in the first three depends on time or machine, so that two runs of one study can be compared.
"""

from __future__ import annotations

import json
import sqlite3
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from fasttransfer.core.errors import InputError
from fasttransfer.core.text import printable
from fasttransfer.pipelines.store import Kind
from fasttransfer.study import paths
from fasttransfer.study.cells import TASKS, Cell

_SCHEMA = """
CREATE TABLE IF NOT EXISTS cells (
    seed INTEGER, name TEXT, treatment TEXT, target TEXT, source TEXT, n INTEGER,
    state TEXT NOT NULL, steps INTEGER NOT NULL, reason TEXT NOT NULL,
    PRIMARY KEY (seed, name));
CREATE TABLE IF NOT EXISTS evaluations (
    seed INTEGER, name TEXT, step INTEGER, train_loss REAL, val_loss REAL, val_top1 REAL,
    PRIMARY KEY (seed, name, step));
CREATE TABLE IF NOT EXISTS correct (seed INTEGER, name TEXT, bits BLOB, PRIMARY KEY (seed, name));
CREATE TABLE IF NOT EXISTS events (utc TEXT, cell TEXT, text TEXT);
CREATE TABLE IF NOT EXISTS environment (key TEXT PRIMARY KEY, value TEXT);
CREATE TABLE IF NOT EXISTS facts (key TEXT PRIMARY KEY, json TEXT);
"""
_VERSION = 1
BEST_CHECKS = 10

Score = Literal["last", "best10"]
"""The last validation check, or the mean of the ten best, which the paper plots."""


@dataclass(frozen=True)
class Evaluation:
    """One validation check.

    Losses are mean cross-entropies in nats, `train_loss` over the steps since the previous check; None where they are
    not finite numbers or were not published. `val_top1` lies in [0, 1].
    """

    step: int
    train_loss: float | None
    val_loss: float | None
    val_top1: float


@dataclass(frozen=True)
class Result:
    """One network of a study and all its checks.

    States: planned, running, done; diverged (its loss was not a finite number), stuck (at chance, its training ended
    early), skipped (never started, because the network it would copy from diverged or is stuck).

    `best10` is a published mean of the ten best checks, for networks whose checks were not published themselves; None
    for every network trained here.

    `correct` has one bit per validation image of the target (`numpy.packbits`), in the order of the store, set where
    the last check got the image right; None where that was not recorded.
    """

    name: str
    treatment: str
    target: str
    source: str | None
    n: int
    seed: int
    state: str
    steps: int
    evaluations: tuple[Evaluation, ...]
    reason: str = ""
    best10: float | None = None
    correct: bytes | None = None

    @property
    def trained(self) -> bool:
        """True if training has ended with a network: to the end, or early because it was stuck."""
        return self.state in ("done", "stuck")

    @property
    def waiting(self) -> bool:
        """True if training has not ended."""
        return self.state in ("planned", "running")

    @property
    def last_top1(self) -> float | None:
        """Return the validation top-1 of the last check."""
        return self.evaluations[-1].val_top1 if self.evaluations else None

    @property
    def best10_top1(self) -> float | None:
        """Return the mean of the ten best validation checks (of all, if there are fewer): the score the paper plots."""
        if self.best10 is not None:
            return self.best10
        best = sorted((e.val_top1 for e in self.evaluations), reverse=True)[:BEST_CHECKS]
        return sum(best) / len(best) if best else None

    def score(self, score: Score) -> float | None:
        """Return the top-1 of a network whose training has ended; None for any other.

        A running network has no score: part of its training against all of its base's would look like a cost.
        """
        if not self.trained:
            return None
        return self.best10_top1 if score == "best10" else self.last_top1

    @property
    def last_loss(self) -> float | None:
        """Return the validation loss of the last check."""
        return self.evaluations[-1].val_loss if self.evaluations else None


@dataclass(frozen=True)
class StudyResults:
    """A study read from disk. `study` is study.toml; `facts` describes the images and tasks."""

    folder: Path
    study: dict[str, Any]
    facts: dict[str, Any]
    results: tuple[Result, ...]
    environment: dict[str, str]
    events: tuple[tuple[str, str, str], ...]

    def store_kind(self, task: str) -> Kind:
        """Return the kind of store that the images of a task were prepared as."""
        stores = self.facts.get("stores") or dict.fromkeys(TASKS, self.facts.get("store", {"kind": "raw"}))
        kind: Kind = stores[task]["kind"]
        return kind


class Records:
    """The driver's handle on study.db. Every call is one transaction, durable when it returns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._input_errors():
            self._db = sqlite3.connect(path)
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.executescript(_SCHEMA)
            self._db.execute(f"PRAGMA user_version = {_VERSION}")

    def __enter__(self) -> Records:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def plan(self, cells: Iterable[Cell]) -> None:
        """Enter the cells that are not there yet as planned."""
        rows = [(c.seed, c.name, c.treatment, c.target, c.source, c.n) for c in cells]
        with self._input_errors(), self._db:
            self._db.executemany("INSERT OR IGNORE INTO cells VALUES (?, ?, ?, ?, ?, ?, 'planned', 0, '')", rows)

    def describe(self, facts: Mapping[str, Any], environment: Mapping[str, str]) -> None:
        """Store the facts about images and tasks and about the machine."""
        with self._input_errors(), self._db:
            as_json = [(k, json.dumps(v)) for k, v in facts.items()]
            self._db.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?)", as_json)
            self._db.executemany(
                "INSERT OR REPLACE INTO environment VALUES (?, ?)",
                {k: printable(v) for k, v in environment.items()}.items(),
            )

    def record_checks(self, checks: Iterable[tuple[Cell, Evaluation]]) -> None:
        """Enter validation checks; a check that is there already is replaced (by the same numbers)."""
        with self._input_errors(), self._db:
            for cell, e in checks:
                self._db.execute(
                    "INSERT OR REPLACE INTO evaluations VALUES (?, ?, ?, ?, ?, ?)",
                    (cell.seed, cell.name, e.step, e.train_loss, e.val_loss, e.val_top1),
                )
                self._db.execute(
                    "UPDATE cells SET state = 'running', steps = max(steps, ?) WHERE seed = ? AND name = ? "
                    "AND state IN ('planned', 'running')",
                    (e.step, cell.seed, cell.name),
                )

    def end_cell(self, cell: Cell, state: str, steps: int, reason: str = "", correct: bytes | None = None) -> None:
        """Mark a cell as done, diverged, stuck or skipped; for `correct` see `Result`."""
        with self._input_errors(), self._db:
            if correct is not None:
                self._db.execute("INSERT OR REPLACE INTO correct VALUES (?, ?, ?)", (cell.seed, cell.name, correct))
            self._db.execute(
                "UPDATE cells SET state = ?, steps = ?, reason = ? WHERE seed = ? AND name = ?",
                (state, steps, printable(reason), cell.seed, cell.name),
            )

    def reopen(self, cell: Cell) -> None:
        """Mark a cell whose weights are missing or corrupt as not trained."""
        with self._input_errors(), self._db:
            self._db.execute(
                "UPDATE cells SET state = 'planned', steps = 0, reason = '' WHERE seed = ? AND name = ?",
                (cell.seed, cell.name),
            )
            for table in ("evaluations", "correct"):
                self._db.execute(f"DELETE FROM {table} WHERE seed = ? AND name = ?", (cell.seed, cell.name))

    def log_event(self, text: str, cell: str = "") -> None:
        """Log an event, with the time."""
        with self._input_errors(), self._db:
            now = datetime.now(UTC).isoformat(timespec="seconds")
            self._db.execute("INSERT INTO events VALUES (?, ?, ?)", (now, cell, printable(text)))

    def read_ended(self) -> dict[tuple[int, str], str]:
        """Return (seed, name) -> state of every cell that has ended."""
        rows = self._db.execute("SELECT seed, name, state FROM cells WHERE state NOT IN ('planned', 'running')")
        return {(seed, name): state for seed, name, state in rows}

    @contextmanager
    def _input_errors(self) -> Iterator[None]:
        """Turn a full or read-only disk, and a file that is not a database, into an `InputError`."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.IntegrityError | sqlite3.ProgrammingError):
                raise
            raise InputError(f"{self.path}: cannot be used ({error}): free space or choose another --out") from error


def read_results(folder: Path) -> StudyResults:
    """Read the study in `folder`.

    Raises:
        InputError: there is no study, or its files cannot be read.
    """
    toml, path = paths.study_file(folder), paths.records_file(folder)
    if not toml.is_file() or not path.is_file():
        raise InputError(f"{folder}: no study here (study.toml and study.db are expected): name a --out folder of grid")
    try:
        study = tomllib.loads(toml.read_text(encoding="utf-8"))
        if "geometry" in (recipe := study.get("recipe", {})):  # its name in studies of earlier versions
            recipe["network"] = recipe.pop("geometry")
        db = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
    except (tomllib.TOMLDecodeError, sqlite3.Error) as error:
        raise InputError(f"{folder}: its study.toml or study.db cannot be read ({error})") from error
    try:
        checks: dict[tuple[int, str], list[Evaluation]] = {}
        for seed, name, step, train_loss, val_loss, top1 in db.execute(
            "SELECT seed, name, step, train_loss, val_loss, val_top1 FROM evaluations ORDER BY step"
        ):
            checks.setdefault((seed, name), []).append(Evaluation(step, train_loss, val_loss, top1))
        correct: dict[tuple[int, str], bytes] = {}
        if db.execute("SELECT 1 FROM sqlite_master WHERE name = 'correct'").fetchone():  # older studies lack the table
            correct = {(seed, name): bits for seed, name, bits in db.execute("SELECT seed, name, bits FROM correct")}
        results = tuple(
            Result(
                name, treatment, target, source, n, seed, state, steps, tuple(checks.get((seed, name), ())), reason,
                correct=correct.get((seed, name)),
            )
            for name, treatment, target, source, n, seed, state, steps, reason in db.execute(
                "SELECT name, treatment, target, source, n, seed, state, steps, reason FROM cells ORDER BY rowid"
            )
        )  # fmt: skip
        facts = {k: json.loads(v) for k, v in db.execute("SELECT key, json FROM facts")}
        environment = dict(db.execute("SELECT key, value FROM environment"))
        events = tuple(db.execute("SELECT utc, cell, text FROM events ORDER BY rowid"))
    except sqlite3.DatabaseError as error:
        raise InputError(f"{path}: not a readable study database ({error})") from error
    finally:
        db.close()
    return StudyResults(folder, study, facts, results, environment, events)
