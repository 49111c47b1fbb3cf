"""Every place at which a model can be cut, what a vanilla plan makes of each, and a mini-batch of real rows."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from cutlayer.data.tables import Table
from cutlayer.errors import CutError, DataError, PlanError
from cutlayer.model.parts import Parts
from cutlayer.model.trace import shortened
from cutlayer.party.agreement import Agreement, draft
from cutlayer.plan.terms import InputTerms, ModelTerms, PartyTerms, Terms, Training

CLIENT, SERVER = "client", "server"


def vanilla(training: Training, inputs: tuple[InputTerms, ...]) -> Terms:
    """A client that has rows and labels, and a server; the cut is still to be named."""
    parties = {CLIENT: PartyTerms(role="client"), SERVER: PartyTerms(role="server")}
    return Terms(
        topology="vanilla", schedule="alternating", model=ModelTerms(), training=training, input=inputs, parties=parties
    )


def possible(
    model: nn.Module, terms: Terms, sample: Sequence[Tensor], only: Sequence[str] = ()
) -> Mapping[str, Agreement]:
    """The plan for each cut that can be made, by layer, in running order; `only` at these layers, if there are any.

    `sample` are inputs of two rows or more. Raises `CutError` if the model can be cut nowhere, or not at a layer that
    was named; `PlanError` for terms that hold for no cut.
    """
    found: dict[str, Agreement] = {}
    reasons = []
    for layer in only or layers(model, sample):
        try:
            found[layer] = draft(replace(terms, model=ModelTerms(cut=(layer,))), model)
        except CutError as error:
            if only:
                raise
            reasons.append(f"at {layer!r}: {error}")
    if not found:
        raise CutError("; ".join(["the model can be cut nowhere", *reasons[:1]]))
    return found


def layers(model: nn.Module, sample: Sequence[Tensor]) -> list[str]:
    """The names that a cut could have, in running order; of several for the same place the shortest.

    A block and its last layer return the same tensor, in the same version: a cut at either is one cut.
    """
    if isinstance(model, Parts):
        return [name for name, _ in model.named_children()][:-1]
    names: dict[tuple[int, int], str] = {}
    kept: list[Any] = []

    def note(name: str, result: Any) -> None:
        kept.append(result)  # or another tensor might get its id
        place = (id(result), result._version if isinstance(result, Tensor) else 0)
        names[place] = min(names.get(place, name), name, key=lambda path: path.count("."))

    tried = copy.deepcopy(model).train()  # in evaluation some layers hand on what they were given
    for name, module in tried.named_modules():
        module.register_forward_hook(lambda _module, _given, result, name=name: note(name, result))
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            tried(*sample)
    except Exception as error:  # the user's code
        raise CutError(f"the model fails on rows like those of the data: {shortened(error)}") from error
    return list(dict.fromkeys(name for name in names.values() if name))


# ---------------------------------------------------------------------- rows


def inputs_of(model: nn.Module, rows: Dataset[Any]) -> tuple[InputTerms, ...]:
    """What a row of features looks like, from the first one; floats take the model's own dtype. Raises `DataError`."""
    if isinstance(rows, Table):
        return tuple(InputTerms(shape=shape, dtype=dtype) for dtype, shape in rows.specs)  # type: ignore[arg-type]
    try:
        *features, _ = rows[0]
        given = features[0] if len(features) == 1 else tuple(features)
        tensors = [torch.as_tensor(each) for each in (given if isinstance(given, tuple | list) else (given,))]
    except Exception as error:
        raise DataError(f"the first row is no pair (x, y) of a tensor and a label: {error}") from error
    floats = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    names = [str(floats if tensor.is_floating_point() else tensor.dtype).removeprefix("torch.") for tensor in tensors]
    return tuple(
        InputTerms(shape=tuple(tensor.shape), dtype=name)  # type: ignore[arg-type]
        for tensor, name in zip(tensors, names, strict=True)
    )


def only_known(model: nn.Module, names: Sequence[str]) -> tuple[str, ...]:
    """Layers that a person named. Raises `PlanError` for one that the model does not have."""
    known = {name for name, _ in model.named_modules()}
    if unknown := [name for name in names if name not in known]:
        raise PlanError(f"the model has no layer {unknown[0]!r}; it has {', '.join(sorted(known - {''})[:8])}")
    return tuple(names)
