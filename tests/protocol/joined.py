"""Sessions joined by a fake wire that delivers in any order across links. No torch."""

import random
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from cutlayer.errors import CutlayerError
from cutlayer.plan.plan import Plan
from cutlayer.plan.tensors import TensorShape
from cutlayer.protocol.agenda import shared_agendas
from cutlayer.protocol.events import (
    Action,
    Add,
    Broke,
    Connected,
    Done,
    Drop,
    Event,
    Fail,
    Give,
    Lost,
    Open,
    Ran,
    Received,
    Run,
    Send,
    Settle,
    Spread,
    Step,
    Store,
    Stored,
    Take,
    Tell,
)
from cutlayer.protocol.messages import MARK_BYTES, Control, Message, Rows, Sealed, Task, Ticket
from cutlayer.protocol.resuming import Standing
from cutlayer.protocol.session import Session
from protocol.plans import LAB
from protocol.words import Words, Worker


@dataclass(frozen=True)
class Traced:
    party: str
    action: Action


@dataclass(frozen=True)
class Enclosed:
    """What one fellow says to another, in its envelope."""

    message: Message | Control
    payload: Any


SEALED = (TensorShape("uint8", (16,)),)


def mark_of(ticket: Ticket, rows: str = "") -> bytes:
    """What stands for the rows of a ticket."""
    return blake2b(repr((ticket, rows)).encode(), digest_size=MARK_BYTES).digest()


def _opened(action: Open) -> Event:
    """What is in an envelope; one that nobody sealed does not open."""
    inner = action.payload
    if isinstance(inner, Enclosed):
        return Received(action.message.source, inner.message, inner.payload)
    return Broke(CutlayerError(f"what {action.message.source} is said to have sealed does not open"))


class Wire:
    """Sessions and the links between them. Within a link the order is kept, across links a seed chooses.

    A `prompt` party works like a real one: what it has to run is done before it hears the next message. Otherwise its
    results come back at any time, one after another. With `shared` the sessions find their works together, once.
    """

    def __init__(
        self,
        plan: Plan,
        rows: Mapping[str, Rows],
        *,
        seed: int | None = None,
        prompt: bool = True,
        worker: Callable[[str], Worker] | None = None,
        shared: bool = False,
        task: Task = "train",
        absent: Collection[str] = (),
    ) -> None:
        self.plan, self.rows = plan, rows
        agendas = shared_agendas(plan, task) if shared else None
        self.sessions = {
            name: Session(
                plan,
                name,
                rows.get(name, Rows()),
                agendas=agendas,
                task=task,
                standing=Standing(absent=frozenset(absent if name == LAB else ())),
            )
            for name in plan.terms.parties
            if name not in absent
        }
        self._numbers: Counter[tuple[str, str]] = Counter()
        """How many messages each party has sealed for another."""
        self.workers: dict[str, Worker] = {
            name: worker(name) if worker else Words(plan, name) for name in self.sessions
        }
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
        queues = self._queues()
        if not queues:
            return None
        return queues[0] if self._random is None else self._random.choice(queues)

    def _queues(self) -> list[tuple[str, deque[Event]]]:
        """What may happen next, and to whom."""
        queues = [(me, events) for (_, me), events in self.links.items() if events]
        return queues + [(me, events) for me, events in self.results.items() if events]

    def feed(self, party: str, event: Event) -> list[Action]:
        """Feed one event to a session, carry out its actions, and give them back."""
        actions = self._fed(party, event)
        while self._prompt and self.results[party]:
            self._fed(party, self.results[party].popleft())
        return actions

    def _fed(self, party: str, event: Event) -> list[Action]:
        self.events += 1
        actions = self.sessions[party].feed(event)
        for action in actions:
            self._perform(party, action)
        return actions

    def _perform(self, party: str, action: Action) -> None:
        self.trace.append(Traced(party, action))
        match action:
            case Run() | Open() | Store():
                self.results[party].append(self._answer(party, action))
            case Step():
                self.workers[party].step(action)
            case Give() | Take() | Add() | Spread() | Settle():
                for state, payload in self.workers[party].move(action):
                    linked = (party, state.target) in self.links
                    self._perform(party, Send(state.target if linked else LAB, state, payload))
            case Send():
                self._send(party, action)
            case Drop():
                self.links.pop((action.peer, party), None)
                self._close(party, action.peer)
            case Done() | Fail():
                self._close(party, *self.sessions)

    def _answer(self, party: str, action: Run | Open | Store) -> Event:
        if isinstance(action, Store):
            return Stored(action.number)
        if isinstance(action, Open):
            return _opened(action)
        result, sums = self.workers[party].run(action)
        marked = self.plan.schedule.together and action.direction == "load"
        mark = mark_of(action.ticket) if marked else b""
        return Ran(action.ticket, action.node, action.direction, result, sums, mark)

    def _send(self, party: str, send: Send) -> None:
        if (party, send.peer) in self.links:
            self.links[party, send.peer].append(Received(party, send.message, send.payload))
        elif send.peer in self.sessions[party].fellows:
            number = self._numbers[party, send.peer]
            self._numbers[party, send.peer] += 1
            sealed = Sealed(party, send.peer, number, SEALED)
            self._perform(party, Send(LAB, sealed, Enclosed(send.message, send.payload)))

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
