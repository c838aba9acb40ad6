"""Cut a model into stages: its forward pass is traced with torch.fx and cut where a single tensor is alive.

Blocks, the children of `nn.Sequential` and `nn.ModuleList`, are single nodes of the trace, so that residual connections
within them do not matter.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from fasttransfer.core.errors import InputError
from fasttransfer.networks.random_modules import random_modules

_BATCH = 5  # of the shapes at cuts: seldom the size of another dimension


class TraceError(Exception):
    """A model cannot be traced or cut: the message says why, without a subject."""


@dataclass(frozen=True)
class Segment:
    """A stage of a trace: the nodes behind the segment before it, up to and with node `end`.

    Attributes:
        name: a module's path.
        paths: of its modules with weights.
    """

    name: str
    end: int
    paths: tuple[str, ...]


@dataclass(frozen=True)
class Trace:
    """The forward pass of a model as a graph: the first node is the images, the last the output.

    Attributes:
        live: node after which a cut is legal -> the one value that is alive there.
        segments: the stages where the user names none.
    """

    model: nn.Module
    nodes: tuple[fx.Node, ...]
    live: Mapping[int, fx.Node]
    segments: tuple[Segment, ...]

    def shape(self, segment: Segment) -> tuple[int, ...]:
        """Return the shape of what leaves a segment, for one image."""
        return tuple(self.live[segment.end].meta["value"].shape[1:])


def trace(model: nn.Module, side: int) -> Trace:
    """Trace a model and cut it into as many stages as sensible.

    Args:
        side: of the images in pixels.

    Raises:
        TraceError: torch.fx cannot trace the model, or it has no single way from an image to the classes.
        Exception: of any type, from the model, where it does not take images of that side.
    """
    graph = _trace_mode(model.eval())
    if _describe(graph) != _describe(_trace_mode(model.train())):
        raise TraceError("its forward pass differs between training and evaluation")
    _Shapes(_without_memory(model).eval(), graph=graph).run(torch.empty(_BATCH, 3, side, side, device="meta"))
    for node in reversed(list(graph.nodes)):
        # Assertions hold for the one size that is used. They, and what only they read, would keep shapes alive.
        is_number = node.op.startswith("call_") and not _holds_tensor(node.meta["value"])
        if not node.users and (is_number or (node.op == "placeholder" and node.meta["value"] is None)):
            graph.erase_node(node)
    nodes = tuple(graph.nodes)
    live = _live_at_cuts(model, nodes)
    return Trace(model, nodes, live, _segments(model, nodes, live))


def _trace_mode(model: nn.Module) -> fx.Graph:
    parameters = list(inspect.signature(model.forward).parameters.values())
    needed = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if len(needed) != 1:
        raise TraceError(f"its forward pass takes {len(needed)} tensors")
    open_paths = set(_paths_to_open(model, ""))
    while True:
        tracer = _Tracer(open_paths)
        try:
            return tracer.trace(model, {p.name: p.default for p in parameters if p.default is not p.empty})
        except Exception as error:  # what a model does with a symbolic value is not foreseeable
            if tracer.failing_path is None:
                raise TraceError(f"torch.fx cannot trace its forward pass ({first_sentence(error)})") from error
            open_paths.remove(tracer.failing_path)


def first_sentence(error: Exception) -> str:
    """Return the first sentence of a library's message, to stand within another."""
    return str(error).split("\n")[0].split(". ")[0].rstrip(".:!") or type(error).__name__


def _describe(graph: fx.Graph) -> list[str]:
    return [f"{node.name} {node.op} {node.target} {node.args} {node.kwargs}" for node in graph.nodes]


def _without_memory(model: nn.Module) -> nn.Module:
    """Return a copy of the model on the meta device."""
    memo: dict[int, Tensor] = {id(p): nn.Parameter(torch.empty_like(p, device="meta")) for p in model.parameters()}
    return copy.deepcopy(model, memo).to("meta")


def _holds_tensor(value: object) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in tree_leaves(value))


class _Tracer(fx.Tracer):
    """Traces through the modules at `open_paths`. `failing_path` is the innermost of them where that went wrong."""

    proxy_buffer_attributes = True

    def __init__(self, open_paths: Collection[str]) -> None:
        super().__init__()
        self._open_paths = open_paths
        self.failing_path: str | None = None

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name not in self._open_paths

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            if self.failing_path is None and not _is_plain(m):
                self.failing_path = self.path_of_module(m)
            raise


def _paths_to_open(module: nn.Module, path: str) -> Iterator[str]:
    """Yield the paths of the modules below `module` to trace through: plain containers, and what holds some."""
    for name, child in module.named_children():
        below = f"{path}.{name}" if path else name
        is_block = isinstance(module, nn.Sequential | nn.ModuleList)
        if _is_plain(child) or (_holds_blocks(child) if is_block else any(map(_is_plain, child.modules()))):
            yield below
            yield from _paths_to_open(child, below)


def _is_plain(module: nn.Module) -> bool:
    return isinstance(module, nn.ModuleList) or type(module).forward is nn.Sequential.forward


def _holds_blocks(module: nn.Module) -> bool:
    """Return whether a child of `module` is a list of blocks of one class of the library's own."""
    for child in module.children():
        blocks = list(child.children()) if _is_plain(child) else []
        if len(blocks) > 1 and len({type(block) for block in blocks}) == 1 and not _is_plain(blocks[0]):
            return not type(blocks[0]).__module__.startswith("torch.nn")
    return False


class _Shapes(fx.Interpreter):
    """Runs a graph. Keeps each node's value as `meta["value"]`, and which nodes' it changes as `meta["changes"]`."""

    def run_node(self, n: fx.Node) -> Any:
        before = {node: value._version for node, value in self.env.items() if isinstance(value, Tensor)}
        n.meta["value"] = super().run_node(n)
        n.meta["changes"] = {node for node, version in before.items() if self.env[node]._version != version}
        return n.meta["value"]


def _segments(model: nn.Module, nodes: tuple[fx.Node, ...], live: Mapping[int, fx.Node]) -> tuple[Segment, ...]:
    groups: list[list[int]] = []
    ends: list[int] = []
    for group in _group_weights(model, nodes):
        # Nodes without weights join the stage before them.
        end = next((i for i in range(group[0] - 1, groups[-1][-1] - 1, -1) if i in live), None) if groups else None
        if groups and end is None:
            groups[-1] += group
        else:
            groups.append(group)
            ends += [end] if end is not None else []
    ends.append(len(nodes) - 2)
    paths = [tuple(str(nodes[i].target) for i in group) for group in groups]
    return tuple(
        Segment(_name(own, [p for other in paths if other is not own for p in other]), end, own)
        for own, end in zip(paths, ends, strict=True)
    )


def _name(own: tuple[str, ...], others: Iterable[str]) -> str:
    """Return the deepest module that holds `own` and nothing of the other stages, else the first of `own`."""
    parts = own[0].split(".")
    prefixes = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
    common = next((p for p in prefixes if all(_is_below(path, p) for path in own)), own[0])
    return own[0] if any(_is_below(path, common) for path in others) else common


def _is_below(path: str, container: str) -> bool:
    """Return whether a module's path is `container` or lies below it."""
    return path == container or path.startswith(f"{container}.")


def _group_weights(model: nn.Module, nodes: tuple[fx.Node, ...]) -> list[list[int]]:
    """Return the nodes with weights of each stage: a block, a convolution or a linear layer, with its normalisation."""
    weighted = [i for i, node in enumerate(nodes) if node.op == "call_module" and _weights(model, node)]
    if not weighted:
        raise TraceError("it has no layers with weights")
    is_norm = {i: all(p.dim() <= 1 for p in _weights(model, nodes[i])) for i in weighted}
    classifier = max((i for i in weighted if not is_norm[i]), default=weighted[-1])
    groups: list[list[int]] = []
    for i in weighted:
        has_only_norms = bool(groups) and all(is_norm[j] for j in groups[-1])
        if not groups:
            groups.append([i])
        elif i == classifier:
            if has_only_norms and len(groups) > 1:
                norms = groups.pop()
                groups[-1] += norms
            groups.append([i])
        elif is_norm[i]:
            layer = model.get_submodule(str(nodes[groups[-1][-1]].target))
            if has_only_norms or i > classifier or isinstance(layer, nn.Linear | nn.modules.conv._ConvNd):
                groups[-1].append(i)
            else:
                groups.append([i])
        elif has_only_norms:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def _weights(model: nn.Module, node: fx.Node) -> list[nn.Parameter]:
    return list(model.get_submodule(str(node.target)).parameters())


def _live_at_cuts(model: nn.Module, nodes: tuple[fx.Node, ...]) -> dict[int, fx.Node]:
    """Return node -> what is alive behind it, for the nodes behind which a cut is legal.

    Exactly one tensor is alive there, batch first, and no weights are used on both sides.
    """
    position = {node: i for i, node in enumerate(nodes)}
    last_use = {node: max((position[user] for user in node.users), default=-1) for node in nodes}
    constants = _constants(nodes)
    shared_ranges = _shared_ranges(model, nodes, constants)
    legal = {}
    for i in range(1, len(nodes) - 1):
        alive = [node for node in nodes[: i + 1] if last_use[node] > i and node not in constants]
        if len(alive) != 1 or any(first <= i < last for first, last in shared_ranges):
            continue
        value = alive[0].meta["value"]
        if isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 1 and len(value) == _BATCH:
            legal[i] = alive[0]
    if len(nodes) - 2 not in legal:
        raise TraceError("it does not return one vector for each image")
    return legal


def _constants(nodes: tuple[fx.Node, ...]) -> set[fx.Node]:
    """Return the nodes that do not depend on the images: parameters, and what is computed from them alone."""
    constants: set[fx.Node] = set()
    for node in nodes[1:-1]:
        if node.op == "get_attr" or all(source in constants for source in node.all_input_nodes):
            constants.add(node)
    return constants


def _shared_ranges(model: nn.Module, nodes: tuple[fx.Node, ...], constants: set[fx.Node]) -> list[tuple[int, int]]:
    """Return the first and the last node that uses a parameter or buffer, for those that several nodes use."""
    unshared = {id(t) for t in model.state_dict(keep_vars=True).values()} | {id(m) for m in random_modules(model)}
    uses: dict[int, list[int]] = {}
    needs: dict[fx.Node, set[int]] = {}  # constant -> what it is computed from
    for i, node in enumerate(nodes):
        own: set[int] = set()
        if node.op == "get_attr":
            own = {id(_attribute(model, str(node.target)))}
        elif node.op == "call_module":
            module = model.get_submodule(str(node.target))
            own = {id(t) for t in (*module.parameters(), *module.buffers(), *random_modules(module))}
        for source in node.all_input_nodes:
            own |= needs.get(source, set())
        if node in constants:
            needs[node] = own
        else:
            for key in own & unshared:
                uses.setdefault(key, []).append(i)
    return [(positions[0], positions[-1]) for positions in uses.values() if len(positions) > 1]


def _attribute(model: nn.Module, path: str) -> object:
    module, _, name = path.rpartition(".")
    return getattr(model.get_submodule(module), name)


def choose_segments(segments: Sequence[Segment], cuts: Sequence[str]) -> tuple[Segment, ...]:
    """Return the stages that end where `cuts` say, and the last one with the classifier.

    Args:
        segments: the finest stages.
        cuts: names of stages, or of modules that hold some: the stage then ends with the last of them.

    Raises:
        InputError: there is no such cut, or two are the same.
    """
    ends = {segment.name: i for i, segment in enumerate(segments)}
    for i, segment in enumerate(segments):
        for path in segment.paths:
            parts = path.split(".")
            ends |= {".".join(parts[:n]): i for n in range(1, len(parts))}
    ends = {name: i for name, i in ends.items() if i < len(segments) - 1}
    name_at: dict[int, str] = {}
    for cut in cuts:
        if cut not in ends:
            names = sorted(ends, key=lambda name: (ends[name], name))
            raise InputError(f"there is no cut {cut!r}: choose from {', '.join(names)}")
        if ends[cut] in name_at:
            raise InputError(f"{name_at[ends[cut]]} and {cut} are the same cut: name it once")
        name_at[ends[cut]] = cut
    stages, first = [], 0
    for last in (*sorted(name_at), len(segments) - 1):
        paths = [path for segment in segments[first : last + 1] for path in segment.paths]
        stages.append(Segment(name_at.get(last, segments[-1].name), segments[last].end, tuple(paths)))
        first = last + 1
    return tuple(stages)


def split(trace: Trace, segments: Sequence[Segment]) -> tuple[fx.GraphModule, ...]:
    """Return a module for each stage, which maps the cut before it to the cut behind it.

    It shares the model's modules, at their paths, so that its state has the model's names.
    """
    stages = []
    first, source = 1, trace.nodes[0]
    for segment in segments:
        graph = fx.Graph()
        values = {source: graph.placeholder("x")}
        nodes = trace.nodes[first : segment.end + 1]
        if any(source in node.meta["changes"] for node in nodes):
            # Other networks read the same cut.
            values[source] = graph.call_method("clone", (values[source],))
        constants = _constants(trace.nodes)

        def copy_node(node: fx.Node, graph: fx.Graph = graph, values: dict[fx.Node, fx.Node] = values) -> fx.Node:
            if node not in values:
                values[node] = graph.node_copy(node, lambda argument: copy_node(argument, graph, values))
            return values[node]

        for node in nodes:
            if node not in constants:
                copy_node(node)
        first, source = segment.end + 1, trace.live[segment.end]
        graph.output(copy_node(source))
        stages.append(fx.GraphModule(trace.model, graph, "Stage"))
    return tuple(stages)
