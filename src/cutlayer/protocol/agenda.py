"""The works of a run, numbered, as each party meets them. Sessions of one process find them together, once."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping

from cutlayer.errors import RunError
from cutlayer.plan.course import Course
from cutlayer.plan.membership import Start
from cutlayer.plan.plan import Plan
from cutlayer.plan.schedule import Average, Entrust, HandOver, Save, Share, Train, Work, predictions, works
from cutlayer.plan.terms import TOGETHER
from cutlayer.protocol.messages import Rows, Task
from cutlayer.protocol.route import parties_on_the_way

Numbered = tuple[int, Work]


class Agenda:
    """Hands each reader, in the schedule's order, the works in which it takes part; the conductor takes part in all.

    What the readers have not yet asked for is kept for them, and nothing else.
    """

    def __init__(
        self,
        plan: Plan,
        members: Mapping[str, Rows],
        readers: Iterable[str],
        task: Task = "train",
        start: Start = Start(),  # noqa: B008 (frozen)
    ) -> None:
        """Raises `RunError` if parties that should have the same rows bring another number of them."""
        self.members, self.start = members, start
        membership = start.log[-1]
        rows = _rows(plan, members, task)
        self.course = Course.of(
            plan,
            {owner: own.train for owner, own in rows.items()},
            {owner: own.held_out for owner, own in rows.items()},
            membership,
        )
        self.done = {owner: self.course.steps_before(owner, membership.round) for owner in rows}
        """By owner of rows: the steps that lie behind the save from which the run is taken up."""
        self._plan = plan
        absent = [party for party in plan.terms.parties if party not in members]
        self._works = self._left(
            works(self.course, plan.schedule) if task == "train" else predictions(self.course, absent)
        )  # fmt: skip
        self._pending: dict[str, deque[Numbered]] = {name: deque() for name in readers}

    def _left(self, all_works: Iterator[Work]) -> Iterator[Numbered]:
        """What is to be done after the save; and what is told in each process anew, the key of the order of rows."""
        start, stop = self.start.save, self.start.until
        told: list[Numbered] = []
        for number, work in numbered(all_works, self.start.log[-1].after + 1):
            if number > start:
                yield from told
                told.clear()
                yield number, work
            elif isinstance(work, Entrust):
                told.append((number, work))
            elif isinstance(work, Train):
                for owner in work.parties:
                    self.done[owner] += work.steps
            if number == stop and isinstance(work, Save):
                return

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


def numbered(all_works: Iterable[Work], first: int = 0) -> Iterator[Numbered]:
    """Works counted from a number on. A save has that of the work before it, so that saves change no ticket."""
    number = first - 1
    for work in all_works:
        number += not isinstance(work, Save)
        yield number, work


Agendas = Callable[[Mapping[str, Rows], Start], Agenda]
"""The agenda for these members, from where the run begins or is taken up."""


def shared_agendas(plan: Plan, task: Task = "train") -> Agendas:
    """For sessions of one process: one agenda serves all that agree on the members."""
    known: list[Agenda] = []

    def of(members: Mapping[str, Rows], start: Start) -> Agenda:
        for agenda in known:
            if (agenda.members, agenda.start) == (members, start):
                return agenda
        known.append(Agenda(plan, members, plan.terms.parties, task, start))
        return known[-1]

    return of


def participants(plan: Plan, work: Work) -> set[str]:
    """The parties that a work needs: those its rows or states meet, and the conductor."""
    match work:
        case HandOver():
            return {plan.conductor, work.source, work.target}
        case Entrust():
            return {plan.conductor, work.source, *work.targets}
        case Save():
            return set(plan.terms.parties)
        case Share():
            return {plan.conductor, plan.aggregator, *_holding(plan, work.segments, work.holders)}
        case Average():
            return {plan.conductor, plan.aggregator, *_holding(plan, work.segments, work.takers)}
        case _:
            return {plan.conductor, *parties_on_the_way(plan, work.parties, work.silent)}


def _holding(plan: Plan, segments: tuple[str, ...], clients: Iterable[str]) -> Iterable[str]:
    """The clients, if any of these segments is theirs."""
    return clients if set(segments) & set(plan.client_segments) else ()


def _rows(plan: Plan, members: Mapping[str, Rows], task: Task) -> dict[str, Rows]:
    """How many rows travel under each owner's name. Raises `RunError`."""
    if not plan.schedule.together:
        return {owner: members[owner] for owner in plan.owners if owner in members}
    bringing = plan.row_owners if task == "train" else plan.feature_owners
    sharing = {party: members[party] for party in bringing if party in members}
    counts = list(sharing.values())
    if len({(rows.train, rows.held_out) for rows in counts}) > 1:
        told = ", ".join(f"{party} {rows.train + rows.held_out}" for party, rows in sharing.items())
        raise RunError(
            f"the parties have columns of the same rows, but bring different numbers of them ({told}): find those that "
            "all have with `cutlayer align`"
        )
    return {TOGETHER: counts[0]}
