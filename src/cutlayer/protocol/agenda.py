"""The works of a run, numbered, as each party meets them. Sessions of one process find them together, once."""

from collections import deque
from collections.abc import Callable, Iterable, Mapping

from cutlayer.plan.course import Course
from cutlayer.plan.plan import Plan
from cutlayer.plan.schedule import Average, Evaluate, HandOver, Share, Train, Work
from cutlayer.protocol.messages import Rows
from cutlayer.protocol.route import parties_on_the_way

Numbered = tuple[int, Work]


class Agenda:
    """Hands each reader, in the schedule's order, the works in which it takes part; the conductor takes part in all.

    What the readers have not yet asked for is kept for them, and nothing else.
    """

    def __init__(self, plan: Plan, members: Mapping[str, Rows], readers: Iterable[str]) -> None:
        clients = plan.clients
        self.members = members
        self.course = Course.of(
            plan,
            {name: members[name].train for name in clients},
            {name: members[name].held_out for name in clients},
        )
        self._plan = plan
        self._works = enumerate(plan.schedule.turns(self.course))
        self._pending: dict[str, deque[Numbered]] = {name: deque() for name in readers}

    def peek(self, reader: str) -> Numbered | None:
        """The next work for this reader, or None after the last."""
        pending = self._pending[reader]
        while not pending:
            numbered = next(self._works, None)
            if numbered is None:
                return None
            for party in participants(self._plan, numbered[1]):
                if party in self._pending:
                    self._pending[party].append(numbered)
        return pending[0]

    def pop(self, reader: str) -> Numbered:
        """Go on to the work after the one that `peek` shows."""
        return self._pending[reader].popleft()


Agendas = Callable[[Mapping[str, Rows]], Agenda]
"""The agenda for these members."""


def shared_agendas(plan: Plan) -> Agendas:
    """For sessions of one process: one agenda serves all that agree on the members."""
    known: list[Agenda] = []

    def of(members: Mapping[str, Rows]) -> Agenda:
        for agenda in known:
            if agenda.members == members:
                return agenda
        known.append(Agenda(plan, members, plan.terms.parties))
        return known[-1]

    return of


def participants(plan: Plan, work: Work) -> set[str]:
    """The parties that a work needs: those its rows or states meet, and the conductor."""
    match work:
        case Train() | Evaluate():
            return {plan.conductor, *parties_on_the_way(plan, work.parties)}
        case HandOver():
            return {plan.conductor, work.source, work.target}
        case Share():
            return {plan.conductor, plan.aggregator, *_holding(plan, work.segments, work.holders)}
        case Average():
            return {plan.conductor, plan.aggregator, *_holding(plan, work.segments, work.takers)}


def _holding(plan: Plan, segments: tuple[str, ...], clients: Iterable[str]) -> Iterable[str]:
    """The clients, if any of these segments is theirs."""
    return clients if set(segments) & set(plan.client_segments) else ()
