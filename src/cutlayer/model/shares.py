"""Which part gets which layer, parameter and buffer of the uncut model, under the name it has there."""

from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from cutlayer.errors import CutError
from cutlayer.model.parts import state_tensors, tied


def share_out(model: nn.Module, used: Sequence[set[str]], names: Sequence[str]) -> list[list[str]]:
    """The paths of layers and tensors of each part, given the paths that each part's forward uses.

    What no forward uses goes where its nearest sibling lives, so that the parts' states add up to the whole's.

    Raises:
        CutError: state that two parts use.
    """
    outermost = _outermost(set().union(*used))
    holders = {
        path: {part for part, paths in enumerate(used) if any(within(p, path) for p in paths)} for path in outermost
    }
    state = [(path, id(tensor)) for path, tensor in state_tensors(model)]
    units = {path: _unit(path, outermost) for path, _ in state}
    _follow_ties(state, units, holders, names)
    _place_unused(units, holders)
    in_order = dict.fromkeys([*units.values(), *sorted(outermost)])
    return [[path for path in in_order if part in holders[path]] for part in range(len(used))]


def within(path: str, unit: str) -> bool:
    """Whether `path` is `unit` or lies inside it."""
    return path == unit or path.startswith(f"{unit}.")


def _outermost(paths: set[str]) -> set[str]:
    return {path for path in paths if not any(path != other and within(path, other) for other in paths)}


def _unit(path: str, outermost: Iterable[str]) -> str:
    """The layer or tensor with which the state at `path` goes: the largest one that no cut divides."""
    for end in [i for i, letter in enumerate(path) if letter == "."]:
        unit = path[:end]
        if unit in outermost or not any(within(other, unit) for other in outermost):
            return unit
    return path


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
    placed = [path for path, unit in units.items() if holders[unit]]
    for position, (path, unit) in enumerate(units.items()):
        if not holders[unit] and placed:
            order = {other: i for i, other in enumerate(units)}
            nearest = max(placed, key=lambda o: (_common(path, o), -abs(order[o] - position)))
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
