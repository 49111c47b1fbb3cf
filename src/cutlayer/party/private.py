"""Segments that learn by DP-SGD: each step's gradients are clipped row by row, accounted for, and given noise."""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from cutlayer.defence.dp_sgd import DpSgd, PerSample
from cutlayer.defence.dp_sgd import faults as layer_faults
from cutlayer.defence.registry import build, faults
from cutlayer.party.accounting import Accounting
from cutlayer.plan.plan import Plan
from cutlayer.plan.tensors import TensorShape
from cutlayer.protocol.messages import Ticket

Generator = Callable[..., torch.Generator]
"""Of a place, and of what gets the noise: a generator that no peer can make again."""
NO_SHAPE = TensorShape("float32", ())


class PrivateSteps:
    """The steps of one segment on one replica."""

    def __init__(
        self,
        segment: str,
        rows: PerSample,
        settings: DpSgd,
        *,
        generator: Generator,
        accounting: Accounting,
        places: Callable[[Ticket], Tensor | None],
    ) -> None:
        self._segment, self._rows, self._settings = segment, rows, settings
        self._generator, self._accounting, self._places = generator, accounting, places
        self._tickets: list[tuple[Ticket, int]] = []

    def gather(self, ticket: Ticket, rows: int) -> None:
        """A backward has been made of so many rows. Raises `Diverged`, `PlanError`."""
        self._rows.gather(rows)
        self._tickets.append((ticket, rows))

    def drop(self) -> None:
        """The gradients that were gathered are for no step."""
        self._tickets.clear()
        self._rows.drop()

    def finish(self) -> None:
        """Before the optimizer steps: write the step down, then give its gradients noise. Raises `BudgetSpent`."""
        if not self._tickets:
            return
        tickets, self._tickets = self._tickets, []
        first, count = tickets[0][0], sum(rows for _, rows in tickets)
        known = [self._places(ticket) for ticket, _ in tickets]
        places = [each for each in known if each is not None]
        digest = self._rows.digest
        self._accounting.stepped(
            self._segment,
            self._settings.mechanism(NO_SHAPE),
            count,
            torch.cat(places) if len(places) == len(known) else None,
            digest,
            first,
        )
        self._rows.finish(self._generator("dp_sgd", self._segment, first.owner, first.turn, first.step, digest))


class Learning:
    """What a party's segments learn by, where that is DP-SGD; the hooks of a module are made once."""

    def __init__(self, plan: Plan) -> None:
        self._settings = {
            segment.name: own for segment in plan.topology.segments if (own := _settings(plan, segment.name))
        }
        self._made: dict[int, tuple[nn.Module, PerSample]] = {}

    def steps(self, segment: str, module: nn.Module, **needs: object) -> PrivateSteps | None:
        """Those of a segment on this module; None where it learns as ever."""
        settings = self._settings.get(segment)
        if settings is None:
            return None
        if id(module) not in self._made:
            self._made[id(module)] = module, PerSample(module, settings, segment)
        return PrivateSteps(segment, self._made[id(module)][1], settings, **needs)  # type: ignore[arg-type]


def _settings(plan: Plan, segment: str) -> DpSgd | None:
    methods = [each for each in build(plan.learning(segment)) if isinstance(each, DpSgd) and not each.neutral]
    return methods[0] if methods else None


def learning_faults(plan: Plan, parts: Mapping[str, nn.Module]) -> Iterator[str]:
    """Why DP-SGD cannot train the segments that a plan says it should: layer by layer."""
    for name, part in parts.items():
        if not faults(plan.learning(name)) and _settings(plan, name):
            yield from layer_faults(part, name)
