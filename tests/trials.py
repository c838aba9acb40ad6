"""A small study in forked processes whose operations on files fail, are cut short, or are the last: for tests/faults.

`Trials` starts this module as a program, which imports everything once; each trial is a fork of it. One process does it
all, from preparing images to records: the workers of a real run write the same files.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from enum import IntEnum
from pathlib import Path
from types import TracebackType

import torch
from studies import quiet, tiny_recipe
from workers_here import WorkersHere

from fasttransfer.core.errors import InputError
from fasttransfer.study.configuration import Choices, Feeding
from fasttransfer.training import grid
from fasttransfer.training.cohort_builder import StudyContext
from fasttransfer.training.messages import Message
from fasttransfer.training.planning import JobPlan
from fasttransfer.training.workers import run_jobs
from fasttransfer.training.workers.schedule import EndedState

LONGEST = 300  # seconds for a trial, which takes a few
INPUT_ERROR, BUG = 2, 1  # exit codes of `fasttransfer`


class Mode(IntEnum):
    """The kinds of fault, as interpose.c numbers them."""

    OFF, FAIL_ONCE, FAIL_FROM, SHORTEN, KILL, TEAR, COUNT = range(7)


@dataclass(frozen=True)
class Fault:
    """A fault at the `at`-th operation that changes files; `error` is the errno of one that fails."""

    mode: Mode = Mode.OFF
    at: int = 0
    error: int = 0


@dataclass(frozen=True)
class Outcome:
    """The end of a trial: its exit code (minus the signal that ended it), its operations, its message or trace."""

    code: int
    operations: int
    text: str


class Trials:
    """A program that runs trials. Use as a context manager."""

    def __init__(self, interposer: Path) -> None:
        here, others = str(Path(__file__).parent), os.environ.get("PYTHONPATH")
        path = os.pathsep.join([here, others] if others else [here])
        environment = os.environ | {"LD_PRELOAD": str(interposer), "PYTHONPATH": path}
        self._program = subprocess.Popen(
            [sys.executable, __file__, str(interposer)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def __enter__(self) -> Trials:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._program.communicate()

    def run(self, folder: Path, fault: Fault | None = None, log: Path | None = None) -> Outcome:
        """Train the study of `folder`/images in `folder`/files/run, with the cache beside it.

        Args:
            log: file that operations are written to, see `replay`.
        """
        return self._ask(folder, fault or Fault(), log, ["run"])[0]

    def run_together(self, folder: Path, outs: Sequence[str]) -> list[Outcome]:
        """Train it in a process per folder of `outs` at the same time, with one cache."""
        return self._ask(folder, Fault(), None, outs)

    def _ask(self, folder: Path, fault: Fault, log: Path | None, outs: Sequence[str]) -> list[Outcome]:
        assert self._program.stdin is not None and self._program.stdout is not None
        request = {"folder": str(folder), "fault": asdict(fault), "log": str(log) if log else None, "outs": [*outs]}
        print(json.dumps(request), file=self._program.stdin, flush=True)
        return [Outcome(**each) for each in json.loads(self._program.stdout.readline())]


def main() -> None:
    """Answer the requests of `Trials`."""
    torch.set_num_threads(1)
    gc.freeze()  # the garbage collector of a fork does not look at what was imported
    library = ctypes.CDLL(sys.argv[1])
    for line in sys.stdin:
        request = json.loads(line)
        folder, children = Path(request["folder"]), {}
        tiny_recipe(folder)
        for number, out in enumerate(request["outs"]):
            answer = folder / f"answer-{number}.json"
            answer.unlink(missing_ok=True)
            if not (child := os.fork()):
                _run_forked(library, folder, Fault(**request["fault"]), request["log"], answer, out)
            children[child] = answer
        outcomes = []
        for child, answer in children.items():
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            told = json.loads(answer.read_text()) if answer.exists() else {"operations": 0, "text": ""}
            outcomes.append({"code": code, **told})
        print(json.dumps(outcomes), flush=True)


def _run_forked(library: ctypes.CDLL, folder: Path, fault: Fault, log: str | None, answer: Path, out: str) -> None:
    """Train under a fault, write what became of it to `answer`, and end the process."""
    code, text = 0, ""
    try:
        signal.alarm(LONGEST)
        files = folder / "files"
        os.environ["FASTTRANSFER_CACHE"] = str(files / "cache")
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600) if log else -1
        library.fault_arm(os.fsencode(files), int(fault.mode), ctypes.c_long(fault.at), fault.error, handle)
        grid.run(
            Choices(
                data=str(folder / "images"),
                recipe=str(folder / "tiny.toml"),
                device="cpu",
                layers=(2,),
                targets=("B",),
                treatments=("selffer", "transfer+"),
                views=1,
            ),
            files / out,
            feeding=Feeding(features="cache"),
            console=quiet(),
            checkpoint_seconds=0.0,
            together=_train_here,
        )
    except InputError as error:
        code, text = INPUT_ERROR, str(error)
    except BaseException:
        code, text = BUG, traceback.format_exc()
    finally:
        operations = library.fault_count()
        library.fault_arm(b"", int(Mode.OFF), ctypes.c_long(0), 0, -1)
        answer.write_text(json.dumps({"operations": operations, "text": text}))
        os._exit(code)


def _train_here(
    setting: StudyContext, division: JobPlan, on_message: Callable[[Message], None], *, ended: EndedState
) -> bool:
    return run_jobs(WorkersHere(setting), setting, division, on_message, ended=ended)


if __name__ == "__main__":
    main()
