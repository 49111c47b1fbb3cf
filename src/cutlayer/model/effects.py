"""What a traced operation reads, changes in place, and returns: the rules by which a graph can be cut."""

import operator
from collections.abc import Mapping
from typing import Literal

import torch
from torch import fx, nn

Kind = Literal["tensor", "int", "float", "size", "device", "dtype"]

INT_METHODS = {"dim", "ndimension", "numel", "nelement"}
ATTRIBUTE_KINDS: dict[object, Kind] = {"shape": "size", "ndim": "int", "device": "device", "dtype": "dtype"}
ARITHMETIC = {"add", "sub", "mul", "floordiv", "mod", "pow", "truediv"}
IN_PLACE = {f"i{name}" for name in ARITHMETIC | {"and", "or", "xor", "matmul", "lshift", "rshift"}} | {"setitem"}
COMPARISONS = {"neg", "pos", "eq", "ne", "lt", "le", "gt", "ge"}
VIEW_METHODS = {
    "view", "view_as", "reshape", "flatten", "unflatten", "transpose", "permute", "squeeze", "unsqueeze", "expand",
    "expand_as", "t", "chunk", "split", "unbind", "narrow", "select", "detach", "contiguous", "to", "float", "double",
}  # fmt: skip
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
SAME_MODULES = (nn.Identity, nn.Flatten, nn.Unflatten, *DROPOUTS)
"""Layers that may return their input, or a view of it."""
JOINS = {torch.cat, torch.concat, torch.stack, torch.hstack, torch.vstack, torch.dstack}


def tensor_args(node: fx.Node) -> list[fx.Node]:
    """The nodes that `node` reads, without the model's own parameters and buffers."""
    return [arg for arg in node.all_input_nodes if arg.op != "get_attr"]


def kind_of(node: fx.Node, kinds: Mapping[fx.Node, Kind]) -> Kind:
    """What `node` returns, as far as its operation tells; anything unknown counts as a tensor."""
    if node.op == "call_method" and node.target == "size":
        return "int" if len(node.args) > 1 or node.kwargs else "size"
    if node.op == "call_method" and node.target in INT_METHODS:
        return "int"
    if node.op == "call_function" and node.target is getattr:
        return ATTRIBUTE_KINDS.get(node.args[1], "tensor")
    if node.op == "call_function":
        return _result_kind(node, [kinds[arg] for arg in node.all_input_nodes])
    return "tensor"


def _result_kind(node: fx.Node, given: list[Kind]) -> Kind:
    if node.target is operator.getitem and given[0] == "size":
        return "size" if isinstance(node.args[1], slice) else "int"
    name = getattr(node.target, "__name__", "")
    on_numbers = given and all(kind in ("int", "float", "size") for kind in given)
    if not on_numbers or name not in ARITHMETIC | IN_PLACE | COMPARISONS:
        return "tensor"
    if "size" in given:
        return "size"
    return "float" if "float" in given or name.endswith("truediv") else "int"


def is_projection(node: fx.Node) -> bool:
    """Whether `node` only picks something out of one value: an item, a size, an attribute."""
    if node.op == "call_method":
        picks = node.target == "size" or node.target in INT_METHODS
    else:
        picks = node.op == "call_function" and node.target in (operator.getitem, getattr)
    return picks and isinstance(node.args[0], fx.Node) and node.args[0].op != "get_attr"


def changed(node: fx.Node, model: nn.Module) -> list[fx.Node]:
    """The nodes whose tensors `node` writes into."""
    if node.op == "call_module":
        writes = _works_in_place(model.get_submodule(str(node.target)))
        return [arg for arg in node.all_input_nodes if writes]
    name = _name(node)
    in_place = node.kwargs.get("inplace") is True or (name.endswith("_") and not name.startswith("_"))
    if node.op not in ("call_function", "call_method") or not (in_place or name in IN_PLACE):
        return []
    return [arg for arg in node.args[:1] if isinstance(arg, fx.Node)]


def _works_in_place(module: nn.Module) -> bool:
    """Whether a layer may write into its input. Of a layer with a forward of its own only its sublayers are known."""
    if not isinstance(module, nn.Sequential):
        return any(getattr(child, "inplace", False) is True for child in module.modules())
    for child in module:
        if not isinstance(child, SAME_MODULES) or _works_in_place(child):
            return _works_in_place(child)
    return False


def memory_of(node: fx.Node, model: nn.Module) -> fx.Node:
    """The node whose memory `node` may return: itself, or what it is a view of."""
    while node.args and isinstance(source := node.args[0], fx.Node) and _returns_its_input(node, model):
        node = source
    return node


def _returns_its_input(node: fx.Node, model: nn.Module) -> bool:
    if node.op == "call_module":
        return _passes_on(model.get_submodule(str(node.target)))
    name = _name(node)
    passes = name in VIEW_METHODS or "dropout" in name or node.target in (operator.getitem, getattr)
    return passes or bool(changed(node, model))


def _passes_on(module: nn.Module) -> bool:
    if isinstance(module, nn.Sequential):
        return all(map(_passes_on, module))
    return isinstance(module, SAME_MODULES) or getattr(module, "inplace", False) is True


def _name(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def dependencies(graph: fx.Graph, model: nn.Module) -> dict[fx.Node, set[fx.Node]]:
    """For each node the nodes that must run before it: what it reads, and the order that in-place changes impose."""
    needs = {node: set(tensor_args(node)) for node in graph.nodes}
    touched: dict[fx.Node, list[fx.Node]] = {}
    writer: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        written = {memory_of(arg, model) for arg in changed(node, model)}
        for memory in {memory_of(arg, model) for arg in node.all_input_nodes}:
            if memory in written:
                needs[node].update(touched.get(memory, ()))
                writer[memory] = node
            elif memory in writer:
                needs[node].add(writer[memory])
            touched.setdefault(memory, []).append(node)
    return needs


def closure(nodes: tuple[fx.Node, ...], needs: Mapping[fx.Node, set[fx.Node]]) -> set[fx.Node]:
    """`nodes` and everything that must run before them."""
    found: set[fx.Node] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting.extend(needs[node])
    return found


def raw_inputs(graph: fx.Graph, model: nn.Module, kinds: Mapping[fx.Node, Kind]) -> dict[fx.Node, fx.Node]:
    """The tensors computed from a raw input without any parameter, or holding such a one; each with that input."""
    raw: dict[fx.Node, fx.Node] = {}
    learned: set[fx.Node] = set()
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for node in graph.nodes:
        sources = [raw[arg] for arg in node.all_input_nodes if arg in raw]
        if node.op == "placeholder":
            raw[node] = node
        elif node.target in JOINS and sources:
            raw[node] = sources[0]
        elif _learns(node, model) or any(arg in learned or arg.target in parameters for arg in node.all_input_nodes):
            learned.add(node)
        elif sources and kinds[node] == "tensor":
            raw[node] = sources[0]
    return raw


def _learns(node: fx.Node, model: nn.Module) -> bool:
    return node.op == "call_module" and any(True for _ in model.get_submodule(str(node.target)).parameters())


def spot(node: fx.Node) -> str:
    """Where in the model's code a node stands, for a person."""
    if node.op == "call_module":
        return f"layer {str(node.target)!r}"
    if node.op == "output":
        return "the model's return"
    inside = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
    return f"`{_name(node)}` in {inside[-1] if inside and inside[-1] else 'the model'}'s forward"
