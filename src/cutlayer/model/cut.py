"""Cuts a model after named layers into parts that share its parameters and keep their names."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from torch import fx, nn

from cutlayer.errors import CutError
from cutlayer.model.crossing import Layout, lay_out, part_graph
from cutlayer.model.parts import Part, Parts, check_states
from cutlayer.model.shares import attach, share_out
from cutlayer.model.trace import PARTS_HINT, ancestors, trace

At = str | int | Sequence[str | int] | None


def cut(model: nn.Module, at: At, names: Sequence[str]) -> dict[str, nn.Module]:
    """Cuts `model` after each layer of `at` into parts, one a name; one part more than cuts.

    A part is called with tensors, `part(*tensors)`, and returns a tensor or a tuple of tensors: the first takes the
    model's inputs, every other exactly what the one before returned. Run in turn they compute what the model does.
    A part holds what its cut layer's output depends on; parameters are the model's own objects under their own names,
    so the parts' state dicts add up to the model's. Parts follow `train()` and `eval()`.

    `at` is a layer's dotted name, a child's number in an `nn.Sequential`, or a sequence of these in running order.
    Explicit `Parts` are cut after their children, all of them when `at` is None.

    Raises:
        CutError: the model cannot be cut there; the message says what to do instead.

    >>> parts = cut(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), 1, ("bottom", "top"))
    >>> list(parts["top"].state_dict())
    ['2.weight', '2.bias']
    """
    _check_names(names)
    if at is None and len(names) == 1:
        return {names[0]: model}
    if isinstance(model, Parts):
        return _cut_parts(model, at, names)
    layers = _layers(model, at, names)
    if not layers:
        return {names[0]: model}
    _check_ancestors(model, layers)
    return _cut_traced(model, layers, names)


def parts_by_name(model: nn.Module, names: Sequence[str]) -> dict[str, nn.Module]:
    """Explicit `Parts` of a network that is no chain, by the names of its segments.

    Raises:
        CutError: no `Parts`, a part that is missing, or one that no segment is.
    """
    if not isinstance(model, Parts):
        raise CutError(
            f"a network that is no chain cannot be cut out of a {type(model).__name__}: give Parts with a part for "
            f"each segment: Parts({', '.join(f'{name}=…' for name in names)})"
        )
    given = dict(model.named_children())
    if given.keys() != set(names):
        missing, strange = [n for n in names if n not in given], [n for n in given if n not in names]
        raise CutError(
            f"the model's parts are {', '.join(given)}, but the segments are {', '.join(names)}: "
            + "; ".join(f"{what} {', '.join(few)}" for what, few in (("add", missing), ("leave out", strange)) if few)
        )
    parts: dict[str, nn.Module] = {name: Parts([(name, given[name])]) for name in names}
    for part in parts.values():
        part.training = model.training
    check_states(parts)
    return parts


def _check_names(names: Sequence[str]) -> None:
    if isinstance(names, str) or not names or len(set(names)) != len(names):
        raise CutError(f"the parts' names {names!r} must be a sequence of different names, such as ('bottom', 'top')")


def _layers(model: nn.Module, at: At, names: Sequence[str]) -> list[str]:
    cuts = [] if at is None else [at] if isinstance(at, (str, int)) else list(at)
    if len(cuts) != len(names) - 1:
        raise CutError(f"{len(cuts)} cuts make {len(cuts) + 1} parts, but {len(names)} are wanted ({', '.join(names)})")
    return [_layer(model, place) for place in cuts]


def _layer(model: nn.Module, place: str | int) -> str:
    known = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    children = [name for name, _ in model.named_children()]
    if isinstance(place, int) and isinstance(model, (nn.Sequential, Parts)) and 0 <= place < len(children):
        return children[place]
    if place == "":
        raise CutError("a model cannot be cut after itself: name one of its layers")
    if not isinstance(place, str) or place not in known:
        near = difflib.get_close_matches(str(place), known, n=3, cutoff=0.4) or known[:3]
        raise CutError(
            f"the model has no layer {place!r}: name one of its layers, such as {', '.join(map(repr, near))}"
        )
    return place


def _check_ancestors(model: nn.Module, layers: Sequence[str]) -> None:
    """What a cut through a module would silently drop."""
    for path, module in ancestors(model, layers).items():
        name = repr(path) if path else "the model"
        if type(module).train is not nn.Module.train:
            raise CutError(f"{name} overrides train(), which no part would call: move that into the layer it is about")
        if _hooks(module) or "forward" in module.__dict__:
            raise CutError(f"{name} has hooks or a patched forward, which a cut would drop: put them on a layer inside")


def _hooks(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks)


def _cut_traced(model: nn.Module, layers: Sequence[str], names: Sequence[str]) -> dict[str, nn.Module]:
    traces = trace(model, layers)
    layouts = {training: lay_out(traced, model, layers) for training, traced in traces.items()}
    same = traces[True].signature() == traces[False].signature()
    if not same:
        _check_modes(model, layouts, layers)
    used = [layouts[True].used(part) | layouts[False].used(part) for part in range(len(names))]
    constants = {**traces[True].constants, **traces[False].constants}
    shares = share_out(model, [paths - constants.keys() for paths in used], names)
    parts: dict[str, nn.Module] = {}
    for i, name in enumerate(names):
        part = Part(training=model.training)
        for path in shares[i]:
            attach(part, model, path)
        for constant in sorted(used[i] & constants.keys()):
            part.register_buffer(constant, constants[constant].clone(), persistent=False)
        train = _compiled(part, part_graph(layouts[True], model, i))
        evaluate = train if same else _compiled(part, part_graph(layouts[False], model, i))
        part.follow({True: train, False: evaluate})
        parts[name] = part
    check_states(parts)
    _check_keys(model, parts)
    return parts


def _check_modes(model: nn.Module, layouts: Mapping[bool, Layout], layers: Sequence[str]) -> None:
    if len({module.training for module in ancestors(model, layers).values()}) > 1:
        raise CutError(f"modules around {layers[0]!r} ask self.training, yet differ in it: call train() on the whole")
    for i, layer in enumerate(layers):
        train, evaluate = ([layout.kinds[node] for node in layout.crossings[i]] for layout in layouts.values())
        if train != evaluate:
            raise CutError(
                f"{len(train)} tensors cross the cut {layer!r} in training, in evaluation {len(evaluate)} or others, "
                f"since a forward asks self.training: cut elsewhere, or move what depends on it into a layer of its own"
            )


def _compiled(part: Part, graph: fx.Graph) -> Callable[..., Any]:
    """The graph as a function of a part and its inputs; GraphModule writes the code, the part holds the state."""
    run: Callable[..., Any] = type(fx.GraphModule(part, graph)).forward
    return run


def _check_keys(model: nn.Module, parts: Mapping[str, nn.Module]) -> None:
    keys = [key for part in parts.values() for key in part.state_dict()]
    strange = sorted(set(model.state_dict()).symmetric_difference(keys))
    if strange or len(set(keys)) < len(keys):
        raise CutError(
            f"the parts' states would not add up to the model's ({', '.join(strange[:3])}), since a module that is cut "
            f"through saves more than its parameters and buffers: {PARTS_HINT}"
        )


def _cut_parts(model: Parts, at: At, names: Sequence[str]) -> dict[str, nn.Module]:
    """Groups the children of explicit parts; each group is `Parts` again, so that state keeps its names."""
    children = list(model.named_children())
    if at is None:
        if len(children) != len(names):
            raise CutError(
                f"the model has {len(children)} parts ({', '.join(name for name, _ in children)}), but {len(names)} "
                f"are wanted ({', '.join(names)}): give as many, or name the ones to cut after"
            )
        ends = list(range(1, len(children) + 1))
    else:
        ends = [*_ends(_layers(model, at, names), [name for name, _ in children]), len(children)]
    if any(start >= end for start, end in pairwise([0, *ends])):
        raise CutError(
            f"the cuts at {at!r} are out of order or leave a part empty: name different parts in running order"
        )
    groups = (children[start:end] for start, end in pairwise([0, *ends]))
    parts: dict[str, nn.Module] = {name: Parts(group) for name, group in zip(names, groups, strict=True)}
    for part in parts.values():
        part.training = model.training
    check_states(parts)
    return parts


def _ends(layers: Sequence[str], children: Sequence[str]) -> list[int]:
    for layer in layers:
        if layer not in children:
            raise CutError(f"explicit parts are cut between {', '.join(map(repr, children))}, not inside, at {layer!r}")
    return [children.index(layer) + 1 for layer in layers]
