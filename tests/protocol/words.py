"""What stands in for a party's rows and segments: words that say where a value comes from, and words for states."""

import re
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from typing import Any, Protocol

from cutlayer.plan.plan import Plan
from cutlayer.plan.tensors import TensorShape
from cutlayer.protocol.events import Add, Direction, Give, Joined, Movement, Replica, Run, Settle, Spread, Step, Take
from cutlayer.protocol.messages import State, StateKind, Ticket

ROWS_TOLD = re.compile(r"\((?:held out |epoch \d+: )(\d+)-(\d+)\)")
Sums = Mapping[str, Mapping[str, float]]
Parcel = tuple[State, Any]


class Worker(Protocol):
    """What stands in for a party's rows and segments."""

    def run(self, run: Run) -> tuple[Any, Sums | None]:
        """The result of a `Run`, and sums by owner if its node is a loss."""

    def step(self, step: Step) -> None:
        """Step a replica."""

    def move(self, movement: Movement) -> Iterable[Parcel]:
        """Carry out a movement; what is to be sent."""


def word(*parts: object) -> str:
    """A short word for anything, in which a difference anywhere shows."""
    return blake2b(repr(parts).encode(), digest_size=8).hexdigest()


class Words:
    """Answers every `Run` with words that say where the value comes from. A replica's state is a word, too.

    It is "initial" until steps and states that move make another of it. `used` keeps which state each `Run` met.
    """

    def __init__(self, plan: Plan, me: str) -> None:
        topology = plan.topology
        self._me = me
        self._inputs = {s.name: [e.name for e in topology.inputs(s.name)] for s in topology.segments}
        self._raw = {e.name for e in topology.edges if topology.source_kind(e)}
        self._losses = {s.name for s in topology.segments if s.loss}
        self.order = ""
        """The key of the order of rows, once it has come from another."""
        self.used: dict[tuple[Ticket, str, Direction], str] = {}
        self._states: dict[Replica, str] = {}
        self._means: dict[Replica | str, str] = {}
        """What replicas begin with since the last average: one replica, or all of a segment."""
        self._shared: set[Replica] = set()
        """Those that were given to an average which has not come back yet."""
        self._gradients: dict[Replica, str] = {}
        self._sum: list[str] = []
        self._complete = False

    def state(self, replica: Replica) -> str:
        base = self._means.get(replica) or self._means.get(replica[0], "initial")
        return self._states.get(replica, base)

    # ------------------------------------------------------------------ work

    def run(self, run: Run) -> tuple[Any, Sums | None]:
        ticket = run.ticket
        if run.direction == "load":
            assert run.batch is not None
            which = "held out " if run.batch.held_out else f"epoch {run.batch.epoch}: "
            return f"{run.node} of {ticket.owner} ({which}{run.batch.start}-{run.batch.stop})", None
        assert run.replica not in self._shared, "a replica is at work between its share and the mean"
        assert (ticket, run.node, run.direction) not in self.used
        self.used[ticket, run.node, run.direction] = self.state(run.replica)
        return self._joined(run) if run.owners else self._alone(run)

    def _alone(self, run: Run) -> tuple[Any, Sums | None]:
        ticket = run.ticket
        if run.direction == "backward":
            return {edge: f"d {edge} {ticket}" for edge in self._inputs[run.node] if edge not in self._raw}, None
        said = f"{run.node}({', '.join(f'{edge}: {value}' for edge, value in run.inputs.items())})"
        scored = run.node in self._losses and ticket.purpose != "predict"
        return said, {ticket.owner: _sums(said)} if scored else None

    def _joined(self, run: Run) -> tuple[Any, Sums | None]:
        """The same for each owner, one after another."""
        single = list(_apart(run))
        results = [self._alone(each) for each in single]
        if run.direction == "backward":
            edges = results[0][0]
            return {edge: Joined(tuple(result[edge] for result, _ in results)) for edge in edges}, None
        if run.node in self._losses:
            return None, {owner: sums for _, by_owner in results for owner, sums in (by_owner or {}).items()}
        return Joined(tuple(result for result, _ in results)), None

    def step(self, step: Step) -> None:
        assert step.replica not in self._shared
        summed = self._gradients.pop(step.replica, "")
        self._states[step.replica] = word(
            self.state(step.replica), step.owners, step.round, step.normaliser, summed
        )  # fmt: skip

    # ------------------------------------------------------------------ movements

    def move(self, movement: Movement) -> Iterable[Parcel]:
        match movement:
            case Give():
                return [self._give(movement)]
            case Take():
                self._take(movement)
            case Add():
                self._add(movement)
            case Spread():
                self._complete = True
                mean = word(movement.of, *self._sum)
                return [self._parcel(movement, "mean", target, mean) for target in movement.targets]
            case Settle():
                self._settle(movement)
        return []

    def _give(self, give: Give) -> Parcel:
        said = word(give.kind, give.of, *map(self.state, give.replicas))
        if give.kind == "share":
            self._put_back(replica for replica in give.replicas if replica[1] == self._me)
        return self._parcel(give, give.kind, give.target, said)

    def _take(self, take: Take) -> None:
        if take.message.kind == "order":
            assert not self.order
            self.order = take.payload
        for replica in take.replicas:
            self._shared.discard(replica)
            if take.of == "gradients":
                self._gradients[replica] = take.payload
            elif take.message.kind == "mean":
                self._states.pop(replica, None)
                self._means[replica] = take.payload
            else:
                self._states[replica] = take.payload

    def _add(self, add: Add) -> None:
        if self._complete:
            self._sum, self._complete = [], False
        came = [add.payload] if add.message else []
        self._sum.append(word(add.of, add.weight, add.owner, *came, *map(self.state, add.replicas)))
        self._put_back(add.replicas)

    def _put_back(self, replicas: Iterable[Replica]) -> None:
        for replica in replicas:
            self._states.pop(replica, None)
            self._shared.add(replica)

    def _settle(self, settle: Settle) -> None:
        self._complete = True
        for segment in settle.segments:
            self._means[segment] = word(segment, settle.payload, *self._sum)
            for replica in [replica for replica in (*self._states, *self._shared) if replica[0] == segment]:
                self._states.pop(replica, None)
                self._shared.discard(replica)

    def _parcel(self, giving: Give | Spread, kind: StateKind, target: str, said: str) -> Parcel:
        shapes = (TensorShape("uint8", (len(said),)),)
        return State(giving.number, kind, self._me, target, shapes, giving.normaliser), said


def _apart(run: Run) -> Iterator[Run]:
    for place, owner in enumerate(run.owners):
        ticket = Ticket(run.ticket.turn, owner, run.ticket.step, run.ticket.micro, run.ticket.purpose)
        inputs = {edge: value.parts[place] for edge, value in run.inputs.items()}
        yield Run(ticket, run.node, run.direction, run.replica, inputs)


def _sums(said: str) -> dict[str, float]:
    rows = float(_rows_of(said))
    return {"loss": 2 * rows, "normaliser": rows}


def _rows_of(said: str) -> int:
    """How many rows a value of `Words` speaks of; one if somebody made it up."""
    found = ROWS_TOLD.findall(said)
    return int(found[-1][1]) - int(found[-1][0]) if found else 1
