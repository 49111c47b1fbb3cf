"""Which part each operation of a traced model lies in, what crosses each cut, and the parts' own graphs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from cutlayer.errors import CutError
from cutlayer.model.effects import (
    Kind,
    changed,
    closure,
    dependencies,
    is_projection,
    kind_of,
    memory_of,
    raw_inputs,
    spot,
)
from cutlayer.model.trace import Trace

NUMBERS: Mapping[Kind, torch.dtype] = {"int": torch.int64, "float": torch.float64, "size": torch.int64}


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """`part_of` each node, and for each cut the nodes whose values cross it, the cut layer's own output first."""

    graph: fx.Graph
    layers: tuple[str, ...]
    part_of: Mapping[fx.Node, int]
    kinds: Mapping[fx.Node, Kind]
    crossings: tuple[tuple[fx.Node, ...], ...]

    def used(self, part: int) -> set[str]:
        """The paths of the layers, parameters and buffers that a part uses."""
        nodes = [node for node in self.graph.nodes if self.part_of.get(node) == part]
        fetched = {arg.target for node in nodes for arg in node.all_input_nodes if arg.op == "get_attr"}
        return {str(target) for target in fetched | {node.target for node in nodes if node.op == "call_module"}}


def lay_out(trace: Trace, model: nn.Module, layers: Sequence[str]) -> Layout:
    """Puts below each cut what the cut layer's output depends on, and nothing else.

    Raises:
        CutError: cuts out of order, nothing or the raw input crossing, a dtype crossing.
    """
    graph = trace.graph
    needs = dependencies(graph, model)
    _check_order(graph, trace.marks, needs, layers)
    part_of = _place(graph, trace.marks, needs)
    kinds: dict[fx.Node, Kind] = {}
    for node in graph.nodes:
        kinds[node] = kind_of(node, kinds)
    crossings = tuple(_crossing(graph, part_of, kinds, cut, mark) for cut, mark in enumerate(trace.marks))
    layout = Layout(graph=graph, layers=tuple(layers), part_of=part_of, kinds=kinds, crossings=crossings)
    _check_crossings(layout, model)
    return layout


def _check_order(
    graph: fx.Graph, marks: Sequence[tuple[fx.Node, ...]], needs: Mapping[fx.Node, set[fx.Node]], layers: Sequence[str]
) -> None:
    reached: set[fx.Node] = set()
    for i, mark in enumerate(marks):
        if set(mark) <= reached:
            raise CutError(f"the cuts {layers[i - 1]!r}, {layers[i]!r} are out of order: name them in running order")
        reached = closure(mark, needs)
        if i and not set(marks[i - 1]) & reached:
            raise CutError(
                f"{layers[i]!r} does not depend on {layers[i - 1]!r}, so no part lies between them: name layers of "
                f"which each needs the one before"
            )
    output = next(node for node in graph.nodes if node.op == "output")
    if not set(marks[-1]) & closure((output,), needs):
        raise CutError(f"the model's result does not depend on {layers[-1]!r}: cut at a layer on the way to the result")


def _place(
    graph: fx.Graph, marks: Sequence[tuple[fx.Node, ...]], needs: Mapping[fx.Node, set[fx.Node]]
) -> dict[fx.Node, int]:
    part_of = {node: 0 for node in graph.nodes if node.op == "placeholder"}
    for part, mark in enumerate(marks):
        for node in closure(mark, needs):
            part_of.setdefault(node, part)
    output = next(node for node in graph.nodes if node.op == "output")
    live = closure((output,), needs)
    for node in graph.nodes:
        if node.op != "get_attr":
            lowest = max((part_of[need] for need in needs[node]), default=0)
            part_of.setdefault(node, len(marks) if node in live else lowest)
    for node in graph.nodes:
        if is_projection(node):
            part_of[node] = _pulled_down(node, part_of, needs)
    return part_of


def _pulled_down(node: fx.Node, part_of: Mapping[fx.Node, int], needs: Mapping[fx.Node, set[fx.Node]]) -> int:
    """An item, a size or an attribute is taken in the lowest part, unless the whole value crosses anyway."""
    lowest = max(part_of[need] for need in needs[node])
    whole = max((part_of[user] for user in node.all_input_nodes[0].users if not is_projection(user)), default=lowest)
    return min(part_of[node], max(lowest, whole))


def _crossing(
    graph: fx.Graph, part_of: Mapping[fx.Node, int], kinds: Mapping[fx.Node, Kind], cut: int, mark: tuple[fx.Node, ...]
) -> tuple[fx.Node, ...]:
    crossing = [
        node
        for node in graph.nodes
        if part_of.get(node, cut + 1) <= cut and any(part_of[user] > cut for user in node.users)
        if kinds[node] != "device"  # the receiver has a device of its own
    ]
    return tuple(sorted(crossing, key=lambda node: node not in mark))


def _check_crossings(layout: Layout, model: nn.Module) -> None:
    raw = raw_inputs(layout.graph, model, layout.kinds)
    for cut, (layer, crossing) in enumerate(zip(layout.layers, layout.crossings, strict=True)):
        if all(layout.kinds[node] != "tensor" for node in crossing):
            raise CutError(f"no tensor crosses the cut at {layer!r}: cut at a layer whose output the rest needs")
        for node in crossing:
            user = next(user for user in node.users if layout.part_of[user] > cut)
            if node in raw:
                raise CutError(
                    f"the raw input {raw[node].name!r} would leave its owner at the cut {layer!r}, since {spot(user)} "
                    f"uses it: cut after that, or give what is needed there a layer with parameters below the cut"
                )
            if layout.kinds[node] == "dtype":
                raise CutError(
                    f"{spot(user)} uses the dtype of a tensor below the cut {layer!r}: read it from a tensor above"
                )
        _check_aliases(layout, model, cut)


def _check_aliases(layout: Layout, model: nn.Module, cut: int) -> None:
    memories = [memory_of(node, model) for node in layout.crossings[cut]]
    for memory in _changed_in(layout, model, range(cut + 1, len(layout.layers) + 1)):
        if memories.count(memory) > 1:
            raise CutError(
                f"a tensor crosses the cut {layout.layers[cut]!r} twice, as itself and as a view, and is changed in "
                f"place above it: use the operation that is not in place"
            )


def _changed_in(layout: Layout, model: nn.Module, parts: range) -> set[fx.Node]:
    nodes = [node for node in layout.graph.nodes if layout.part_of.get(node) in parts]
    return {memory_of(arg, model) for node in nodes for arg in changed(node, model)}


def part_graph(layout: Layout, model: nn.Module, part: int) -> fx.Graph:
    """One part's own graph: placeholders for what crosses in, a tensor or a tuple of tensors out.

    Raises:
        CutError: the model returns something else than a tensor or a tuple of tensors.
    """
    graph = fx.Graph()
    here = [node for node in layout.graph.nodes if layout.part_of.get(node) == part]
    passed = _received(layout, model, part, graph) if part else {}
    env = _restored(layout, here, passed, graph)
    for node in here:
        for arg in node.all_input_nodes:
            if arg.op == "get_attr" and arg not in env:
                env[arg] = graph.node_copy(arg)
        if node.op != "output":
            env[node] = graph.node_copy(node, env.__getitem__)
    if part == len(layout.layers):
        graph.output(_returned(here[-1], env))
    else:
        out = [passed.get(node) or _as_tensor(graph, env[node], layout.kinds[node]) for node in layout.crossings[part]]
        graph.output(out[0] if len(out) == 1 else tuple(out))
    graph.lint()
    return graph


def _received(layout: Layout, model: nn.Module, part: int, graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """What crosses in, as tensors; a tensor that this part changes in place is cloned, since its sender keeps it."""
    placeholders = {node: graph.placeholder(node.name) for node in layout.crossings[part - 1]}
    written = _changed_in(layout, model, range(part, part + 1))
    return {
        node: graph.call_method("clone", (placeholder,)) if memory_of(node, model) in written else placeholder
        for node, placeholder in placeholders.items()
    }


def _restored(
    layout: Layout, here: Sequence[fx.Node], passed: Mapping[fx.Node, fx.Node], graph: fx.Graph
) -> dict[fx.Node, fx.Node]:
    """What the part's operations need from below: tensors as they came, numbers made numbers again."""
    env: dict[fx.Node, fx.Node] = {}
    for node in dict.fromkeys(arg for user in here for arg in user.all_input_nodes):
        kind = layout.kinds[node]
        if node in passed:
            env[node] = passed[node] if kind == "tensor" else graph.call_function(RESTORE[kind], (passed[node],))
        elif kind == "device" and node not in here:
            tensor = next(value for sent, value in passed.items() if layout.kinds[sent] == "tensor")
            env[node] = graph.call_function(getattr, (tensor, "device"))
    return env


def _as_tensor(graph: fx.Graph, value: fx.Node, kind: Kind) -> fx.Node:
    return value if kind == "tensor" else graph.call_function(torch.tensor, (value,), {"dtype": NUMBERS[kind]})


def _size(sizes: Tensor) -> torch.Size:
    return torch.Size(sizes.tolist())


RESTORE: Mapping[Kind, Callable[..., Any]] = {"int": int, "float": float, "size": _size}


def _returned(output: fx.Node, env: Mapping[fx.Node, fx.Node]) -> fx.Node | tuple[fx.Node, ...]:
    value = output.args[0]
    if isinstance(value, fx.Node):
        return env[value]
    if not isinstance(value, (tuple, list)) or not all(isinstance(item, fx.Node) for item in value):
        kind = type(value).__name__.removeprefix("immutable_")
        raise CutError(f"the model returns a {kind} of more than tensors: return a tensor or a tuple of tensors")
    return tuple(env[item] for item in value if isinstance(item, fx.Node))
