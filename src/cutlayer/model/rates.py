"""Learning rates as a function of a count: which options the optimizer has after so many moves of its LR schedule."""

from array import array
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn, optim

from cutlayer.plan.terms import Method


def make_optimizer(method: Method, parameters: list[nn.Parameter]) -> optim.Optimizer:
    """The optimizer that a plan names. Raises what torch raises for wrong arguments."""
    optimizer: optim.Optimizer = getattr(optim, method.name)(parameters, **method.options)
    return optimizer


def make_schedule(method: Method, optimizer: optim.Optimizer) -> optim.lr_scheduler.LRScheduler:
    """The LR schedule that a plan names; it moves on every round, or every step if `every = "step"`."""
    options = {name: value for name, value in method.options.items() if name != "every"}
    schedule: optim.lr_scheduler.LRScheduler = getattr(optim.lr_scheduler, method.name)(optimizer, **options)
    return schedule


class Rates:
    """An LR schedule without a position of its own, so that all replicas of a run share one.

    torch's own schedule runs ahead on an optimizer over a made-up parameter, and what it set is remembered: any count
    is answered with torch's bits, earlier ones without a replay. Not for several threads at once.
    """

    def __init__(self, optimizer: Method, schedule: Method | None) -> None:
        """Raises what torch raises for wrong arguments."""
        self.every_step = schedule is not None and schedule.options.get("every", "round") == "step"
        """Whether the schedule moves on every step, and not on every round."""
        self._optimizer = make_optimizer(optimizer, [nn.Parameter(torch.ones(1, 1))])  # Muon takes matrices only
        self._group = self._optimizer.param_groups[0]
        self._schedule = None if schedule is None else make_schedule(schedule, self._optimizer)
        cycles = bool(getattr(self._schedule, "cycle_momentum", False))  # as OneCycleLR and CyclicLR do by default
        self._momentum = ("betas" if "betas" in self._group else "momentum") if cycles else ""
        self._lrs, self._momenta = array("d"), array("d")
        self._last: tuple[int, Mapping[str, Any]] = 0, {"lr": self._group["lr"]}
        if self._schedule is not None:
            self._optimizer.step()  # else torch warns that the schedule moves first
            self._remember()
            self._last = 0, self._recalled(0)

    def at(self, count: int) -> Mapping[str, Any]:
        """The optimizer's options after `count` moves: `lr`, and `momentum` or `betas` where the schedule sets them.

        Raises what torch raises where a schedule ends (OneCycleLR after its last step).

        >>> halved = Method(name="ExponentialLR", options={"gamma": 0.5})
        >>> rates = Rates(Method(name="SGD", options={"lr": 0.8}), halved)
        >>> rates.at(2), rates.at(1)
        ({'lr': 0.2}, {'lr': 0.4})
        """
        if self._schedule is None or count == self._last[0]:
            return self._last[1]
        while len(self._lrs) <= count:
            self._schedule.step()
            self._remember()
        self._last = count, self._recalled(count)
        return self._last[1]

    def _remember(self) -> None:
        self._lrs.append(self._group["lr"])
        if self._momentum:
            value = self._group[self._momentum]
            self._momenta.append(value[0] if self._momentum == "betas" else value)

    def _recalled(self, count: int) -> dict[str, Any]:
        options: dict[str, Any] = {"lr": self._lrs[count]}
        if self._momentum == "betas":
            options["betas"] = (self._momenta[count], *self._group["betas"][1:])
        elif self._momentum:
            options["momentum"] = self._momenta[count]
        return options
