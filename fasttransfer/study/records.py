"""The results of a study so far: `study.db`, an SQLite file that only the driver process writes.

Tables: `cells` (one row per network), `evaluations` (one row per validation check), `correct` (the validation images
that each network got right at its last check), `events`, `environment`, `facts`; `checksums` (one row per network, over
its rows in the first three, and one over the facts, which SQLite does not protect against damage of the disk);
`verified` (the stamp of each network's file when it was last read and its checksum compared).
Nothing in the first three depends on time or machine, so that two runs of one study can be compared.
"""

from __future__ import annotations

import json
import sqlite3
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import xxhash

from fasttransfer.core.errors import InputError
from fasttransfer.core.files import disk_errors, has_locks
from fasttransfer.core.text import printable
from fasttransfer.study import paths
from fasttransfer.study.cells import TASKS, Cell

if TYPE_CHECKING:
    from fasttransfer.pipelines.store import Kind

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
CREATE TABLE IF NOT EXISTS checksums (seed INTEGER, name TEXT, xxh3 TEXT, PRIMARY KEY (seed, name));
CREATE TABLE IF NOT EXISTS verified (seed INTEGER, name TEXT, stamp TEXT, PRIMARY KEY (seed, name));
"""
_VERSION = 1
_SYNCHRONOUS = "FULL"  # what is committed survives a power cut
_FACTS = (-1, "facts")  # seed and name of the checksum of facts
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

    def data_of(self, task: str) -> str:
        """Return where the images of a task were when the study was trained last, see `Study.data_of`."""
        name = "data_b" if task == "B" and "data_b" in self.study else "data"
        place: str = self.facts.get("data", {}).get(task, self.study[name])
        return place

    def store_kind(self, task: str) -> Kind:
        """Return the kind of store that the images of a task were prepared as."""
        stores = self.facts.get("stores") or dict.fromkeys(TASKS, self.facts.get("store", {"kind": "raw"}))
        kind: Kind = stores[task]["kind"]
        return kind


class Records:
    """The driver's handle on study.db. Every call is one transaction, durable when it returns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with disk_errors(path):
            path.touch()
        with self._input_errors():
            self._db = _connect(path, is_owner=True)
            self._db.execute(f"PRAGMA synchronous = {_SYNCHRONOUS}")
            self._db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT")  # all or nothing

    def __enter__(self) -> Records:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def plan(self, cells: Iterable[Cell]) -> None:
        """Enter the cells that are not there yet as planned."""
        rows = [(c.seed, c.name, c.treatment, c.target, c.source, c.n) for c in cells]
        with self._transaction():
            self._db.executemany("INSERT OR IGNORE INTO cells VALUES (?, ?, ?, ?, ?, ?, 'planned', 0, '')", rows)
            for row in rows:
                self._sign(row[0], row[1])

    def describe(self, facts: Mapping[str, Any], environment: Mapping[str, str]) -> None:
        """Store the facts about images and tasks and about the machine."""
        with self._transaction():
            as_json = [(k, json.dumps(v)) for k, v in facts.items()]
            self._db.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?)", as_json)
            self._db.executemany(
                "INSERT OR REPLACE INTO environment VALUES (?, ?)",
                {k: printable(v) for k, v in environment.items()}.items(),
            )
            self._sign(*_FACTS)

    def record_checks(self, checks: Iterable[tuple[Cell, Evaluation]]) -> None:
        """Enter validation checks; a check that is there already is replaced (by the same numbers)."""
        with self._transaction():
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
                self._sign(cell.seed, cell.name)

    def end_cell(self, cell: Cell, state: str, steps: int, reason: str = "", correct: bytes | None = None) -> None:
        """Mark a cell as done, diverged, stuck or skipped; for `correct` see `Result`."""
        with self._transaction():
            if correct is not None:
                self._db.execute("INSERT OR REPLACE INTO correct VALUES (?, ?, ?)", (cell.seed, cell.name, correct))
            self._db.execute(
                "UPDATE cells SET state = ?, steps = ?, reason = ? WHERE seed = ? AND name = ?",
                (state, steps, printable(reason), cell.seed, cell.name),
            )
            self._sign(cell.seed, cell.name)

    def reopen(self, cell: Cell) -> None:
        """Mark a cell whose weights are missing or corrupt as not trained."""
        with self._transaction():
            self._db.execute(
                "UPDATE cells SET state = 'planned', steps = 0, reason = '' WHERE seed = ? AND name = ?",
                (cell.seed, cell.name),
            )
            for table in ("evaluations", "correct"):
                self._db.execute(f"DELETE FROM {table} WHERE seed = ? AND name = ?", (cell.seed, cell.name))  # noqa: S608
            self._sign(cell.seed, cell.name)

    def record_verified(self, stamps: Iterable[tuple[Cell, str]]) -> None:
        """Enter the stamps of networks' files that were just read and compared with their checksums."""
        with self._transaction():
            rows = [(cell.seed, cell.name, stamp) for cell, stamp in stamps]
            self._db.executemany("INSERT OR REPLACE INTO verified VALUES (?, ?, ?)", rows)

    def read_verified(self) -> dict[tuple[int, str], str]:
        """Return (seed, name) -> stamp of the network's file when it was verified last."""
        rows = self._db.execute("SELECT seed, name, stamp FROM verified")
        return {(seed, name): stamp for seed, name, stamp in rows}

    def log_event(self, text: str, cell: str = "") -> None:
        """Log an event, with the time."""
        with self._transaction():
            now = datetime.now(UTC).isoformat(timespec="seconds")
            self._db.execute("INSERT INTO events VALUES (?, ?, ?)", (now, cell, printable(text)))

    def read_ended(self) -> dict[tuple[int, str], str]:
        """Return (seed, name) -> state of every cell that has ended."""
        rows = self._db.execute("SELECT seed, name, state FROM cells WHERE state NOT IN ('planned', 'running')")
        return {(seed, name): state for seed, name, state in rows}

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._input_errors(), self._db:
            yield

    def _sign(self, seed: int, name: str) -> None:
        """Enter the checksum of a cell's rows, or of the facts."""
        row = seed, name, _checksum(self._db, seed, name)
        self._db.execute("INSERT OR REPLACE INTO checksums VALUES (?, ?, ?)", row)

    @contextmanager
    def _input_errors(self) -> Iterator[None]:
        """Turn a full or read-only disk, and a file that is not a database, into an `InputError`."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.IntegrityError | sqlite3.ProgrammingError):
                raise
            raise InputError(f"{self.path}: cannot be used ({error}): free space or choose another --out") from error


def _connect(path: Path, *, is_owner: bool) -> sqlite3.Connection:
    """Open the existing file; where its file system has no locks, that of the study's folder has to do.

    Readers open it for writing too, because the first to read after a run was killed rolls back what that had begun;
    without locks that is up to the owner, since the run may be at work.
    """
    uri = path.resolve().as_uri()
    if has_locks(path):
        return sqlite3.connect(f"{uri}?mode=rw", uri=True)
    return sqlite3.connect(f"{uri}?nolock=1&mode={'rw' if is_owner else 'ro'}", uri=True)


def _checksum(db: sqlite3.Connection, seed: int, name: str) -> str:
    if (seed, name) == _FACTS:
        return xxhash.xxh3_64_hexdigest(repr(db.execute("SELECT * FROM facts ORDER BY key").fetchall()).encode())
    state = xxhash.xxh3_64()
    for table, key in (("cells", "name"), ("evaluations", "step"), ("correct", "name")):
        query = f"SELECT * FROM {table} WHERE seed = ? AND name = ? ORDER BY {key}"  # noqa: S608
        rows = db.execute(query, (seed, name))
        state.update(repr(rows.fetchall()).encode())
    return state.hexdigest()


def _find_damage(db: sqlite3.Connection) -> str:
    """Return what is damaged, in words; "" where all is as it was written.

    Raises:
        sqlite3.DatabaseError: so much that it cannot be read.
    """
    (state,) = db.execute("PRAGMA integrity_check(1)").fetchone()
    if state != "ok":
        return str(" ".join(state.split()))
    if db.execute("SELECT 1 FROM sqlite_master WHERE name = 'checksums'").fetchone():  # older studies lack the table
        for seed, name, checksum in db.execute("SELECT seed, name, xxh3 FROM checksums").fetchall():
            if checksum != _checksum(db, seed, name):
                return f"the checksum of {name} does not match its rows"
    return ""


def quarantine_damaged(folder: Path) -> str:
    """Move study.db out of the way if it is damaged; return what is damaged in words, else "".

    One that a run was killed amid creating is removed. A damaged one is made again from the networks' files, see
    `fasttransfer.training.study_setup.prepare_records`. The caller holds the study's folder.
    """
    path = paths.records_file(folder)
    if not path.exists():
        return ""
    try:
        with closing(_connect(path, is_owner=True)) as db:
            damage = _find_damage(db)
            if not db.execute("SELECT 1 FROM sqlite_master").fetchone():
                path.unlink()
    except sqlite3.OperationalError:  # the disk, which the next to write reports
        return ""
    except sqlite3.DatabaseError as error:
        damage = str(error)
    if damage:
        with disk_errors(folder):
            path.replace(path.with_name(f"{path.name}.damaged"))
    return damage


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
        db = _connect(path, is_owner=False)
    except (tomllib.TOMLDecodeError, sqlite3.Error) as error:
        raise InputError(f"{folder}: its study.toml or study.db cannot be read ({error})") from error
    try:
        if damage := _find_damage(db):
            raise InputError(
                f"{path}: is damaged ({damage}): the same grid command makes it again from the networks in weights/"
            )
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
