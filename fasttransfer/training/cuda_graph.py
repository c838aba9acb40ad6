"""Record work on a GPU once and replay it: thousands of kernels for the cost of one launch."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


class RecordedGraph:
    """A function of tensors that always have the same shapes, as a CUDA graph.

    The first call runs it as it is, which sets up libraries and workspaces; the second records it; from then on it is
    replayed on copies of its inputs. It may change tensors of its own in place; it must not branch on their values.

    Args:
        function: takes a mapping of tensors, returns nothing.
    """

    def __init__(self, function: Callable[[Mapping[str, Tensor]], None]) -> None:
        self._function = function
        self._calls = 0
        self._inputs: dict[str, Tensor] = {}
        self._graph = torch.cuda.CUDAGraph()

    def __call__(self, inputs: Mapping[str, Tensor]) -> None:
        """Run, record or replay the function on `inputs`."""
        self._calls += 1
        if self._calls == 1:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                self._function(inputs)
            torch.cuda.current_stream().wait_stream(side)
            return
        if self._calls == 2:
            self._inputs = {name: torch.empty_like(t) for name, t in inputs.items()}
            # Only this thread's calls are recorded and restricted: others make batches meanwhile, DALI's among them.
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._function(self._inputs)
        for name, tensor in inputs.items():
            self._inputs[name].copy_(tensor)
        self._graph.replay()
