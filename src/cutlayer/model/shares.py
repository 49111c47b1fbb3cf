"""Which part gets which layer, parameter and buffer of the uncut model, under the name it has there."""

from collections.abc import Sequence

from torch import Tensor, nn

from cutlayer.errors import CutError
from cutlayer.model.parts import state_tensors, tied


def share_out(model: nn.Module, used: Sequence[set[str]], names: Sequence[str]) -> list[list[str]]:
    """The paths of layers and tensors of each part, given the paths that each part's forward uses.

    What no forward uses goes where its nearest sibling lives, so that the parts' states add up to the whole's.

    Raises:
        CutError: state that two parts use.
    """
    refs: set[str] = set().union(*used)
    outermost = {path for path in refs if not refs.intersection(_prefixes(path))}
    holders: dict[str, set[int]] = {path: set() for path in outermost}
    for part, paths in enumerate(used):
        for path in paths:
            holders[next(unit for unit in (*_prefixes(path), path) if unit in outermost)].add(part)
    state = [(path, id(tensor)) for path, tensor in state_tensors(model)]
    divided = {prefix for path in outermost for prefix in _prefixes(path)}
    units = {path: next(unit for unit in (*_prefixes(path), path) if unit not in divided) for path, _ in state}
    _follow_ties(state, units, holders, names)
    _place_unused(units, holders)
    in_order = dict.fromkeys([*units.values(), *sorted(outermost)])
    return [[path for path in in_order if part in holders[path]] for part in range(len(used))]


def _prefixes(path: str) -> list[str]:
    """The paths of the modules around `path`, the outermost first."""
    return [path[:i] for i, letter in enumerate(path) if letter == "."]


def _follow_ties(
    state: Sequence[tuple[str, int]], units: dict[str, str], holders: dict[str, set[int]], names: Sequence[str]
) -> None:
    """One tensor under several paths goes to one part with all of them."""
    first: dict[int, tuple[str, int]] = {}
    for _ in range(2):  # a used path after an unused one
        for path, tensor in state:
            for part in sorted(holders.setdefault(units[path], set())):
                other, before = first.setdefault(tensor, (path, part))
                if before != part:
                    raise CutError(tied(other, path, names[before], names[part]))
            if tensor in first:
                holders[units[path]].add(first[tensor][1])


def _place_unused(units: dict[str, str], holders: dict[str, set[int]]) -> None:
    order = {path: i for i, path in enumerate(units)}
    placed = [path for path, unit in units.items() if holders[unit]]
    for path, unit in units.items():
        if not holders[unit] and placed:
            nearest = max(placed, key=lambda other: (_common(path, other), -abs(order[other] - order[path])))
            holders[unit] = set(holders[units[nearest]])


def _common(one: str, other: str) -> int:
    """How many names two paths share from the left."""
    pairs = list(zip(one.split("."), other.split("."), strict=False))
    return next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))


def attach(part: nn.Module, model: nn.Module, path: str) -> None:
    """Gives `part` the model's own layer or tensor at `path`, under the same path."""
    *above, name = path.split(".")
    here, there = part, model
    for step in above:
        there = getattr(there, step)
        if step not in here._modules:
            container = nn.Module()
            container.training = there.training
            here.add_module(step, container)
        here = here.get_submodule(step)
    value = getattr(there, name)
    if isinstance(value, nn.Parameter):
        here.register_parameter(name, value)
    elif isinstance(value, Tensor):
        persistent = name in there._buffers and name not in there._non_persistent_buffers_set
        here.register_buffer(name, value, persistent=persistent)
    else:
        setattr(here, name, value)
