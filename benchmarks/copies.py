"""Parties without torch: real sessions over real links, with W1's payloads, whose segments only copy memory.

One thread owns all parties of a process, and one for each link fills their common inbox, as `party.loop` does it.
"""

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

from cutlayer.errors import ChannelClosed, ChannelError, CutlayerError
from cutlayer.plan.limits import Limits
from cutlayer.plan.plan import Contents, Plan, SegmentContents
from cutlayer.plan.tensors import TensorShape, TensorSpec
from cutlayer.plan.terms import InputTerms, Method, ModelTerms, PartyTerms, Terms, Training
from cutlayer.protocol import wire
from cutlayer.protocol.agenda import Agendas
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
    Store,
    Stored,
    Tick,
)
from cutlayer.protocol.messages import Rows
from cutlayer.protocol.route import largest_body_bytes
from cutlayer.protocol.session import Session
from cutlayer.protocol.wire import Frame
from cutlayer.transport.channel import Channel

SERVER = "lab"
BATCH = 64
PIXELS = TensorSpec(dtype="float32", shape=("B", 1, 28, 28), differentiable=False)
HIDDEN = TensorSpec(dtype="float32", shape=("B", 64, 7, 7))
LABELS = TensorSpec(dtype="int64", shape=("B",), differentiable=False)
CUT_EDGE = "bottom->top"
TICK_S = 1.0

Values = list[memoryview]


def plan_of(clients: tuple[str, ...], limits: Limits = Limits()) -> Plan:  # noqa: B008 (frozen)
    """W1 under `alternating`, a mini-batch at a time, all steps in one round."""
    terms = Terms(
        topology="vanilla",
        schedule="alternating",
        turn="batch",
        model=ModelTerms(),
        input=InputTerms(shape=(1, 28, 28)),
        training=Training(
            loss=Method(name="cross_entropy"), optimizer=Method(name="SGD"), batch_size=BATCH, rounds=1, held_out=0.0
        ),
        parties={name: PartyTerms(role="client") for name in clients} | {SERVER: PartyTerms(role="server")},
        limits=limits,
    )
    weights = {name: {f"{name}.weight": TensorShape("float32", (64, 64))} for name in ("bottom", "top")}
    contents = Contents(
        segments={name: SegmentContents(state=state, parameters=64 * 64) for name, state in weights.items()},
        edges={"x->bottom": (PIXELS,), CUT_EDGE: (HIDDEN,), "y->top": (LABELS,)},
        classes={},
        model_digest="",
        weights_digest="",
    )
    return Plan(terms=terms, contents=contents)


class Copies:
    """What stands in for the segments of all parties of a process."""

    def __init__(self) -> None:
        self._sources = {"x": _filled(PIXELS), "y": _filled(LABELS)}
        self._hidden = _filled(HIDDEN)

    def run(self, run: Run) -> Ran:
        """Load: the rows as they lie there. Forward: a copy of what comes. Backward: a gradient, copied."""
        if run.direction == "load":
            return Ran(run.ticket, run.node, run.direction, [self._sources[run.node]])
        if run.direction == "forward":
            if run.node == "bottom":
                return Ran(run.ticket, run.node, run.direction, [_copied(self._hidden)])
            _copied(run.inputs[CUT_EDGE][0])
            sums = {run.ticket.owner: {"loss": 1.0, "normaliser": float(BATCH)}}
            return Ran(run.ticket, run.node, run.direction, None, sums)
        if run.node == "top":
            return Ran(run.ticket, run.node, run.direction, {CUT_EDGE: [_copied(self._hidden)]})
        _copied(run.inputs[CUT_EDGE][0])
        return Ran(run.ticket, run.node, run.direction, {})


def _filled(spec: TensorSpec) -> memoryview:
    return memoryview(bytes([1]) * spec.for_rows(BATCH).nbytes)


def _copied(data: memoryview) -> memoryview:
    return memoryview(bytearray(data))


@dataclass(frozen=True, slots=True, eq=False)
class Link:
    """A channel of one of our parties, and how many more of its frames may lie in the inbox."""

    party: str
    channel: Channel
    room: threading.Semaphore


class Crew:
    """Some parties of one run in one process. `run` raises what ended the run, if it did not end as planned."""

    def __init__(self, plan: Plan, parties: Mapping[str, Rows], agendas: Agendas | None = None) -> None:
        self.sessions = {name: Session(plan, name, rows, agendas=agendas) for name, rows in parties.items()}
        self.stepped: list[tuple[float, float]] = []
        """When each optimizer step of our parties was, and how much processor time this process had taken by then."""
        self._limits = plan.terms.limits
        self._body_limit = largest_body_bytes(plan)
        self._copies = Copies()
        self._links: dict[tuple[str, str], Channel] = {}
        self._staying = set(self.sessions)
        self._inbox: SimpleQueue[Link | tuple[Link, Frame | Exception] | Exception] = SimpleQueue()
        self._threads: list[threading.Thread] = []

    def start(self, work: Callable[[], None]) -> None:
        """Do `work` in a thread; what goes wrong there ends the run."""

        def guarded() -> None:
            try:
                work()
            except Exception as error:
                self._inbox.put(error)

        thread = threading.Thread(target=guarded, daemon=True)
        self._threads.append(thread)
        thread.start()

    def connect(self, party: str, channel: Channel) -> None:
        """A link of a party of ours stands. From any thread."""
        self._inbox.put(Link(party, channel, threading.Semaphore(2 * self._limits.live_tickets)))

    def run(self) -> None:
        heard = time.monotonic()
        while self._staying:
            try:
                item = self._inbox.get(timeout=TICK_S)
            except Empty:
                for party in list(self._staying):
                    self._feed(party, Tick(time.monotonic() - heard))
                continue
            heard = time.monotonic()
            if isinstance(item, Exception):
                raise item
            self._handle(item)

    def close(self) -> None:
        for channel in self._links.values():
            channel.close()
        for thread in self._threads:
            thread.join(TICK_S)

    def _read(self, link: Link) -> None:
        try:
            while True:
                if link.room.acquire(timeout=self._limits.send_timeout_s):
                    self._inbox.put((link, link.channel.receive(self._body_limit)))
        except ChannelError as error:
            self._inbox.put((link, error))

    def _handle(self, item: Link | tuple[Link, Frame | Exception]) -> None:
        if isinstance(item, Link):
            self._links[item.party, item.channel.peer] = item.channel
            self.start(lambda: self._read(item))
            self._feed(item.party, Connected(item.channel.peer))
            return
        link, arrived = item
        if self._links.get((link.party, link.channel.peer)) is not link.channel:
            return
        if isinstance(arrived, Exception):
            self._feed(link.party, Lost(link.channel.peer, str(arrived)))
            return
        message, views = wire.decode(arrived)
        self._feed(link.party, Received(link.channel.peer, message, views))
        link.room.release()

    def _feed(self, party: str, event: Event) -> None:
        events = [event]
        while events:
            for action in self.sessions[party].feed(events.pop(0)):
                if (following := self._perform(party, action)) is not None:
                    events.append(following)

    def _perform(self, party: str, action: Action) -> Event | None:
        """Do what a session says; what comes of it. Nothing is written down: a save has no contents."""
        match action:
            case Run():
                return self._copies.run(action)
            case Store():
                return Stored(action.number)
            case Send():
                return self._send(party, action)
            case Step():
                self.stepped.append((time.perf_counter(), time.process_time()))
            case Drop():
                self._links.pop((party, action.peer)).close()
            case Done():
                self._staying.discard(party)
            case Fail():
                raise action.error
        return None

    def _send(self, party: str, send: Send) -> Event | None:
        payload: Any = send.payload or ()
        try:
            self._links[party, send.peer].send(wire.encode(send.message, payload))
        except ChannelClosed:
            return None  # who reads this link says so, after the peer's last words
        except CutlayerError as error:
            return Lost(send.peer, str(error))
        return None


def last_words(channel: Channel, limit_bytes: int) -> None:
    """Receive until the peer has left."""
    with suppress(ChannelError):
        while True:
            channel.receive(limit_bytes)
