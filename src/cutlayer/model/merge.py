"""Puts the uncut model together again from its parts' states."""

import copy
from collections import Counter
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from cutlayer.errors import CutError
from cutlayer.model.parts import state_tensors
from cutlayer.model.state import MODEL, ReplicaState
from cutlayer.model.trace import shortened

State = Mapping[str, Tensor]


def merge(model: nn.Module, parts: Iterable[nn.Module | State]) -> nn.Module:
    """A copy of the uncut `model` with the state of `parts`: modules that `cut` returned, or their state dicts.

    Buffers that a model does not save come from parts that are modules, and stay the model's own otherwise.

    Raises:
        CutError: a name that is missing, unknown or in two parts, a tensor of another shape.
    """
    given = list(parts)
    states: list[State] = [part.state_dict() if isinstance(part, nn.Module) else part for part in given]
    merged = copy.deepcopy(model)
    _check_names(set(merged.state_dict()), [name for state in states for name in state])
    try:
        merged.load_state_dict({name: tensor for state in states for name, tensor in state.items()}, strict=True)
    except RuntimeError as error:
        reason = shortened(RuntimeError(str(error).partition("\n")[2] or str(error)))
        raise CutError(
            f"the parts are not of this model ({reason}): merge into the model they were cut from"
        ) from error
    _copy_unsaved(merged, given)
    return merged


def put_into(module: nn.Module, state: ReplicaState) -> None:
    """The parameters and buffers of a replica's state, into a segment's module; what the state lacks stays."""
    held = dict(state_tensors(module))
    with torch.no_grad():
        for key, tensor in state.tensors.items():
            if key.startswith(MODEL):
                held[key.removeprefix(MODEL)].copy_(tensor)


def _check_names(wanted: set[str], found: list[str]) -> None:
    faults = {
        "missing": wanted - set(found),
        "not in the model": set(found) - wanted,
        "in two parts": {name for name, times in Counter(found).items() if times > 1},
    }
    told = [f"{fault}: {', '.join(sorted(names))}" for fault, names in faults.items() if names]
    if told:
        raise CutError(f"the parts do not add up to the model ({'; '.join(told)}): give each of its parts once")


def _copy_unsaved(merged: nn.Module, parts: Iterable[nn.Module | State]) -> None:
    saved = merged.state_dict().keys()
    own = dict(merged.named_buffers(remove_duplicate=False))
    for part in parts:
        held = part.named_buffers(remove_duplicate=False) if isinstance(part, nn.Module) else ()
        for name, value in held:
            if name in own and name not in saved:
                with torch.no_grad():
                    own[name].copy_(value)
