"""Train a job in a worker process, wherever it runs, and report to the driver how that ended."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable
from dataclasses import dataclass

import torch

from fasttransfer.core.errors import InputError
from fasttransfer.core.files import access_errors
from fasttransfer.training.cohort_builder import StudyContext, build_cohort
from fasttransfer.training.messages import Message
from fasttransfer.training.planning import TrainingJob

# Messages of what has no exception of its own for short memory: PyTorch's allocator for CPUs, CUDA and its libraries,
# C++, and the system.
_OUT_OF_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "std::bad_alloc",
    "Cannot allocate memory",
    "PyObject pointer is null",  # safetensors, where Python has no room for what it writes
)


class WorkerError(RuntimeError):
    """A worker failed: its stack trace."""


@dataclass(frozen=True)
class WorkerFree:
    """A worker waits for a job: it has come up, ended its last one, or saved that in checkpoints."""


@dataclass(frozen=True)
class OutOfMemory:
    """There was not enough memory for a job, by the error's `text`. Its worker waits for another."""

    text: str


@dataclass(frozen=True)
class WorkerLost:
    """A worker is gone; `why` in words, and in `memory` whether the system ended it because memory was short."""

    why: str
    memory: bool = False


WorkerMessage = Message | WorkerFree | OutOfMemory | WorkerLost | InputError | WorkerError
"""What a worker reports; an error is raised in the driver."""


def train_job(
    setting: StudyContext,
    job: TrainingJob,
    device: torch.device,
    log: Callable[[WorkerMessage], None],
    stop: Callable[[], bool],
) -> None:
    """Train the cells of `job` until they end or `stop` returns True; the last message logged is how that ended."""
    end: WorkerMessage = WorkerFree()
    try:
        with access_errors():
            cohort = build_cohort(setting, job.cells, device, log, stop)
            cohort.run(log, stop, setting.checkpoint_seconds)
            del cohort
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:  # a panic in Rust is no Exception
        end = _ending(error)
    # No name refers to the cohort any more: its memory is freed for the next.
    gc.collect()
    if device.type == "cuda" and isinstance(end, OutOfMemory):
        torch.cuda.empty_cache()
    log(end)


def _ending(error: BaseException) -> OutOfMemory | InputError | WorkerError:
    """Return what to report of `error`."""
    cause: BaseException | None = error
    while cause is not None:  # the error that ends a CUDA graph's recording is not the one about memory
        text = str(cause)
        if isinstance(cause, MemoryError | torch.OutOfMemoryError) or any(short in text for short in _OUT_OF_MEMORY):
            return OutOfMemory((text.strip() or type(cause).__name__).splitlines()[0])
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, InputError):
        return InputError(str(error))
    return WorkerError("".join(traceback.format_exception(error)))
