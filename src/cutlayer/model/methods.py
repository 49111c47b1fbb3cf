"""Whether torch has the loss, the optimizer and the LR schedule that a plan names, and takes their options."""

from collections.abc import Iterable
from dataclasses import replace
from fnmatch import fnmatchcase

import torch
from torch import nn

from cutlayer.model.loss import KINDS
from cutlayer.model.rates import make_optimizer, make_schedule
from cutlayer.model.replica import NOT_SCHEDULES, NOT_SPLIT, optimizer_names, schedule_names
from cutlayer.plan.document import nearest
from cutlayer.plan.terms import Method, Training


def canonical(training: Training) -> tuple[Training, list[str]]:
    """The training terms with torch's own spelling of each name (`adam` is `Adam`), and all faults found."""
    faults: list[str] = []
    loss = _spelled(training.loss, KINDS, "training.loss", {}, faults)
    optimizer = _spelled(training.optimizer, optimizer_names(), "training.optimizer", NOT_SPLIT, faults)
    server = training.server_optimizer
    if server is not None:
        server = _spelled(server, optimizer_names(), "training.server_optimizer", NOT_SPLIT, faults)
    schedule = training.lr_schedule
    if schedule is not None:
        schedule = _spelled(schedule, schedule_names(), "training.lr_schedule", NOT_SCHEDULES, faults)
    losses = {
        name: _spelled(method, KINDS, f"training.losses.{name}", {}, faults) for name, method in training.losses.items()
    }
    training = replace(
        training, loss=loss, optimizer=optimizer, server_optimizer=server, lr_schedule=schedule, losses=losses
    )  # fmt: skip
    return training, faults or _option_faults(training)


def _spelled(
    method: Method, known: Iterable[str], where: str, refused: dict[str, str], faults: list[str]
) -> Method:  # fmt: skip
    folded = {name.lower(): name for name in known}
    reasons = {name.lower(): reason for name, reason in refused.items()}
    low = method.name.lower()
    if low in reasons:
        faults.append(f"{where} = {method.name!r} cannot be used across a cut: {reasons[low]}")
    elif low not in folded:
        faults.append(f"{where} = {method.name!r} is unknown{nearest(method.name, folded.values())}")
    return replace(method, name=folded.get(low, method.name))


def _option_faults(training: Training) -> list[str]:
    """What torch says to the options, tried on a parameter made up for it."""
    losses = {"loss": training.loss} | {f"losses.{name}": method for name, method in training.losses.items()}
    faults = [
        f"training.{where}.{option} is no option of {loss.name}" + nearest(option, KINDS[loss.name].options or {"none"})
        for where, loss in losses.items()
        for option in loss.options.keys() - KINDS[loss.name].options
    ]
    for which in ("optimizer", "server_optimizer"):
        method: Method | None = getattr(training, which)
        if method is None:
            continue
        try:
            optimizer = make_optimizer(method, [nn.Parameter(torch.zeros(1, 1))])
        except Exception as error:
            return [*faults, f"training.{which}: torch's {method.name} refuses its options: {error}"]
        if training.lr_schedule is not None:
            try:
                make_schedule(training.lr_schedule, optimizer)
            except Exception as error:
                name = training.lr_schedule.name
                faults.append(f"training.lr_schedule: torch's {name} refuses its options: {error}")
    return list(dict.fromkeys(faults))


def personal_names(model: nn.Module, patterns: Iterable[str]) -> tuple[tuple[str, ...], list[str]]:
    """The parameters and buffers that patterns of names, or `type:BatchNorm2d`, choose; and a fault for each that none.

    >>> personal_names(nn.Sequential(nn.Linear(2, 2), nn.PReLU()), ["0.w*", "type:PReLU"])
    (('0.weight', '1.weight'), [])
    """
    layers = dict(model.named_modules())
    names = [name for name, _ in (*model.named_parameters(), *model.named_buffers())]
    chosen: set[str] = set()
    faults = []
    for pattern in patterns:
        kind = pattern.removeprefix("type:") if pattern.startswith("type:") else None
        found = {
            name
            for name in names
            if (fnmatchcase(name, pattern) if kind is None else type(layers[name.rpartition(".")[0]]).__name__ == kind)
        }
        if not found:
            known = names if kind is None else sorted({f"type:{type(layer).__name__}" for layer in layers.values()})
            faults.append(f"training.personal: {pattern!r} fits no parameter or buffer{nearest(pattern, known)}")
        chosen |= found
    return tuple(name for name in names if name in chosen), faults


def batch_norm_layers(module: nn.Module) -> list[str]:
    """The layers whose output depends on the whole batch, by name: they allow no micro-batches."""
    return [name for name, layer in module.named_modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]


def mixes_rows(module: nn.Module) -> bool:
    """Whether torch's layers in it normalise over the whole batch, or keep statistics of batches before.

    What a module of the user's own does with a batch is not looked at.
    """
    return bool(batch_norm_layers(module)) or any(
        getattr(layer, "track_running_stats", False) for layer in module.modules()
    )
