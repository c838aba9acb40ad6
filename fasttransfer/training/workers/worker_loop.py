"""What a worker does with a job, wherever it runs, and what it tells the driver beside what its cohort reports."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from fasttransfer.core.errors import InputError
from fasttransfer.training.cohort_builder import StudyContext, build_cohort
from fasttransfer.training.messages import Message
from fasttransfer.training.planning import TrainingJob

# How those tell of memory that cannot be had who have no exception of their own for it: PyTorch's allocator for CPUs,
# CUDA and its libraries, C++, and the system.
_SIGNS = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "std::bad_alloc",
    "Cannot allocate memory",
    "PyObject pointer is null",  # safetensors, where Python has no room for what it writes
)


@dataclass(frozen=True)
class WorkerFree:
    """A worker waits for a job: it has come up, ended its last one, or left that in checkpoints."""


@dataclass(frozen=True)
class OutOfMemory:
    """There was not enough memory for a job, says `text`. Its worker waits for another."""

    text: str


@dataclass(frozen=True)
class WorkerFailed:
    """What went wrong in a worker: a sentence for the user (`spoken`), or a stack trace."""

    text: str
    spoken: bool


@dataclass(frozen=True)
class WorkerLost:
    """A worker is gone, `why` says how; `memory`: the system ended it because memory was short."""

    why: str
    memory: bool = False


WorkerMessage = Message | WorkerFree | OutOfMemory | WorkerFailed | WorkerLost


def train_job(
    setting: StudyContext,
    job: TrainingJob,
    device: torch.device,
    log: Callable[[WorkerMessage], None],
    stop: Callable[[], bool],
) -> None:
    """Trains the cells of `job` until they end or `stop` says so; what it says last is how that went."""
    end: WorkerMessage = WorkerFree()
    try:
        cohort = build_cohort(setting, job.cells, device, log, stop)
        cohort.run(log, stop, setting.checkpoint_seconds)
        del cohort
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:  # a panic in Rust is no Exception
        end = _ending(error)
    # Here nothing holds the cohort any more, so that its memory is there for the next.
    gc.collect()
    if device.type == "cuda" and isinstance(end, OutOfMemory):
        torch.cuda.empty_cache()
    log(end)


def _ending(error: BaseException) -> OutOfMemory | WorkerFailed:
    """What to say of `error`."""
    for each in _chain(error):
        if _is_short(each):
            return OutOfMemory(_first_line(each))
    if isinstance(error, InputError):
        return WorkerFailed(str(error), spoken=True)
    return WorkerFailed("".join(traceback.format_exception(error)), spoken=False)


def _is_short(error: BaseException) -> bool:
    """Whether `error` says that there is no more memory."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(sign in str(error) for sign in _SIGNS)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """`error` and what led to it: what ends a recording on a GPU speaks of the recording, not of the memory."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
