"""Plans made by hand, and sessions joined by a fake wire that delivers in any order across links. No torch."""

import random
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from cutlayer.plan.limits import Limits
from cutlayer.plan.plan import (
    Contents,
    InputTerms,
    Method,
    ModelTerms,
    PartyTerms,
    Plan,
    SegmentContents,
    Terms,
    Training,
)
from cutlayer.plan.course import Course
from cutlayer.plan.schedule import SCHEDULES, TurnUnit, Work
from cutlayer.plan.tensors import TensorSpec
from cutlayer.plan.topology import TOPOLOGIES
from cutlayer.protocol.events import (
    Action,
    Connected,
    Done,
    Drop,
    Event,
    Fail,
    Lost,
    Ran,
    Received,
    Run,
    Send,
    Step,
    Tell,
)
from cutlayer.protocol.messages import Control, Message, Rows
from cutlayer.protocol.session import Session

LAB = "lab"
CLIENTS = ("hospital-a", "hospital-b", "hospital-c", "hospital-d")
A, B, C, D = CLIENTS

FEATURES = TensorSpec(dtype="float64", shape=("B", 4), differentiable=False)
HIDDEN = TensorSpec(dtype="float64", shape=("B", 6))
FROZEN = TensorSpec(dtype="float64", shape=("B", 6), differentiable=False)
ANSWERS = TensorSpec(dtype="float64", shape=("B", 2), differentiable=False)


def make_plan(
    topology: str = "vanilla",
    *,
    clients: int = 2,
    rounds: int = 1,
    batch_size: int = 4,
    micro_batches: int = 1,
    turn: TurnUnit = "epoch",
    drop_last: bool = False,
    frozen: bool = False,
    limits: Limits | None = None,
) -> Plan:
    """A plan for `hospital-a` … and `lab`. With `frozen` the bottom has nothing to learn, so no gradient comes back."""
    parties = {name: PartyTerms(role="client") for name in CLIENTS[:clients]} | {LAB: PartyTerms(role="server")}
    carried = {"x": FEATURES, "y": ANSWERS, "bottom": FROZEN if frozen else HIDDEN}
    shape = TOPOLOGIES[topology]()
    terms = Terms(
        topology=topology,
        schedule="alternating",
        turn=turn,
        model=ModelTerms(),
        input=InputTerms(shape=(4,), dtype="float64"),
        training=Training(
            loss=Method(name="mse_loss"),
            optimizer=Method(name="SGD"),
            batch_size=batch_size,
            rounds=rounds,
            micro_batches=micro_batches,
            drop_last=drop_last,
        ),
        parties=parties,
        limits=limits or Limits(),
    )
    contents = Contents(
        segments={segment.name: SegmentContents(state={}, parameters=0) for segment in shape.segments},
        edges={edge.name: (carried.get(edge.source, HIDDEN),) for edge in shape.edges},
        classes=0,
        model_digest="",
        weights_digest="",
    )
    return Plan(terms=terms, contents=contents)


def schedule_of(plan: Plan, rows: Mapping[str, Rows]) -> list[Work]:
    """The turns of a whole run."""
    clients = plan.terms.filling("client")
    course = Course.of(plan, {n: rows[n].train for n in clients}, {n: rows[n].held_out for n in clients})
    return list(SCHEDULES[plan.terms.schedule].turns(course))


class Worker(Protocol):
    """What stands in for a party's rows and segments."""

    def run(self, run: Run) -> tuple[Any, dict[str, float] | None]:
        """The result of a `Run`, and sums if its node is a loss."""

    def step(self, step: Step) -> None:
        """Step a replica."""


class Words:
    """Answers every `Run` with words that say where the value comes from."""

    def __init__(self, plan: Plan) -> None:
        topology = plan.topology
        self._inputs = {s.name: [e.name for e in topology.inputs(s.name)] for s in topology.segments}
        self._raw = {e.name for e in topology.edges if topology.source_kind(e)}
        self._losses = {s.name for s in topology.segments if s.loss}

    def run(self, run: Run) -> tuple[Any, dict[str, float] | None]:
        ticket = run.ticket
        if run.direction == "load":
            assert run.batch is not None
            which = "held out " if run.batch.held_out else f"epoch {run.batch.epoch}: "
            return f"{run.node} of {ticket.owner} ({which}{run.batch.start}-{run.batch.stop})", None
        if run.direction == "backward":
            return {edge: f"d {edge} {ticket}" for edge in self._inputs[run.node] if edge not in self._raw}, None
        said = f"{run.node}({', '.join(f'{edge}: {value}' for edge, value in run.inputs.items())})"
        if run.node not in self._losses:
            return said, None
        rows = float(_rows_of(said))
        return said, {"loss": 2 * rows, "normaliser": rows}

    def step(self, step: Step) -> None:
        pass


def _rows_of(said: str) -> int:
    """How many rows a value of `Words` speaks of; one if somebody made it up."""
    _, found, rest = said.rpartition("y of ")
    if not found or ")" not in rest:
        return 1
    start, stop = rest.split(")")[0].split(" ")[-1].split("-")
    return int(stop) - int(start)


@dataclass(frozen=True)
class Traced:
    party: str
    action: Action


class Wire:
    """Sessions and the links between them. Within a link the order is kept, across links a seed chooses.

    A `prompt` party works like a real one: what it has to run is done before it hears the next message. Otherwise its
    results come back at any time, one after another.
    """

    def __init__(
        self,
        plan: Plan,
        rows: Mapping[str, Rows],
        *,
        seed: int | None = None,
        prompt: bool = True,
        worker: Callable[[str], Worker] | None = None,
    ) -> None:
        self.plan, self.rows = plan, rows
        self.sessions = {name: Session(plan, name, rows.get(name, Rows())) for name in plan.terms.parties}
        self.workers: dict[str, Worker] = {name: worker(name) if worker else Words(plan) for name in self.sessions}
        self.links: dict[tuple[str, str], deque[Event]] = {}
        self.results: dict[str, deque[Event]] = {name: deque() for name in self.sessions}
        self.trace: list[Traced] = []
        self.events = 0
        self._prompt = prompt
        self._random = None if seed is None else random.Random(seed)  # noqa: S311 (an order, no secret)

    def start(self) -> "Wire":
        """Connect every client with the lab."""
        for name in self.sessions:
            if name != LAB:
                self.connect(name)
        return self

    def connect(self, client: str) -> None:
        for me, peer in ((client, LAB), (LAB, client)):
            self.links[peer, me] = deque([Connected(peer)])

    def run(self, *, until: Callable[["Wire"], bool] = lambda _: False) -> "Wire":
        """Deliver until nothing is left, or `until` says stop; it is asked after each event."""
        while (queue := self._choose()) is not None:
            party, events = queue
            self.feed(party, events.popleft())
            if until(self):
                break
        return self

    def _choose(self) -> tuple[str, deque[Event]] | None:
        queues = [(me, events) for (_, me), events in self.links.items() if events]
        queues += [(me, events) for me, events in self.results.items() if events]
        if not queues:
            return None
        return queues[0] if self._random is None else self._random.choice(queues)

    def feed(self, party: str, event: Event) -> list[Action]:
        """Feed one event to a session, carry out its actions, and give them back."""
        self.events += 1
        actions = self.sessions[party].feed(event)
        for action in actions:
            self._perform(party, action)
        while self._prompt and self.results[party]:
            self.feed(party, self.results[party].popleft())
        return actions

    def _perform(self, party: str, action: Action) -> None:
        self.trace.append(Traced(party, action))
        match action:
            case Run():
                result, sums = self.workers[party].run(action)
                by_owner = None if sums is None else {action.ticket.owner: sums}
                self.results[party].append(Ran(action.ticket, action.node, action.direction, result, by_owner))
            case Step():
                self.workers[party].step(action)
            case Send() if (party, action.peer) in self.links:
                self.links[party, action.peer].append(Received(party, action.message, action.payload))
            case Drop():
                self.links.pop((action.peer, party), None)
                self._close(party, action.peer)
            case Done() | Fail():
                self._close(party, *self.sessions)

    def _close(self, party: str, *peers: str) -> None:
        """Peers hear of a link's end after all that was sent before."""
        for peer in peers:
            if (party, peer) in self.links:
                self.links[party, peer].append(Lost(party, "it closed the link"))

    def inject(self, peer: str, party: str, message: Message | Control, payload: Any = None) -> list[Action]:
        """`peer` sends `party` something, overtaking whatever is on its way."""
        return self.feed(party, Received(peer, message, payload))

    # ------------------------------------------------------------------ what was seen

    def actions(self, party: str) -> list[Action]:
        return [traced.action for traced in self.trace if traced.party == party]

    def sent(self, party: str, peer: str | None = None) -> list[Send]:
        return [a for a in self.actions(party) if isinstance(a, Send) and peer in {None, a.peer}]

    def tells(self, party: str) -> list[Tell]:
        return [action for action in self.actions(party) if isinstance(action, Tell)]

    def endings(self) -> dict[str, Action]:
        """How the run has ended for each party for which it has."""
        return {t.party: t.action for t in self.trace if isinstance(t.action, Done | Fail)}

    def by_replica(self) -> dict[tuple[str, tuple[str, str]], list[Run | Step]]:
        """What each party did with each replica, in order."""
        done: defaultdict[tuple[str, tuple[str, str]], list[Run | Step]] = defaultdict(list)
        for traced in self.trace:
            action = traced.action
            if isinstance(action, Step) or (isinstance(action, Run) and action.direction != "load"):
                done[traced.party, action.replica].append(action)
        return done


def steps_of(work: Work, rows: Rows, plan: Plan) -> Iterator[int]:
    """The rows in each mini-batch of a training turn, counted without the code under test."""
    size = plan.terms.training.batch_size
    batches = [min(size, rows.train - start) for start in range(0, rows.train, size)]
    if plan.terms.training.drop_last and batches and batches[-1] < size:
        batches.pop()
    first = getattr(work, "first", 0)
    yield from batches[first : first + getattr(work, "steps", 0)]


def unfrozen(plan: Plan) -> bool:
    """Whether the bottom gets gradients."""
    return any(
        spec.differentiable for name, specs in plan.contents.edges.items() if name[:3] == "bot" for spec in specs
    )
