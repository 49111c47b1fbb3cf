"""A party: a session, the replicas and rows it works on, and the links to its peers.

One thread owns all of it. Whoever drives a party, the loop over a network or the simulator, only calls `connect`,
`deliver` and `feed`; everything a mini-batch meets at this party happens below `feed`, in order.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from cutlayer.data.loader import Loader
from cutlayer.errors import (
    ChannelClosed,
    ChannelError,
    CodecError,
    CutlayerError,
    FrameRefused,
    Misaligned,
    RemoteProtocolError,
    RunError,
    SegmentFailed,
)
from cutlayer.model.state import MODEL
from cutlayer.observe.audit import Audit
from cutlayer.observe.facts import Cached, Fact, Noticed, Observer, Progressed, Spent
from cutlayer.party.accounting import Accounting
from cutlayer.party.coding import Coding
from cutlayer.party.defending import Defending, Witnesses
from cutlayer.party.forwarding import Forwarding
from cutlayer.party.judging import Judging
from cutlayer.party.keeping import Keeping
from cutlayer.party.masking import MaskedSum
from cutlayer.party.moving import Mover
from cutlayer.party.notes import Notes
from cutlayer.party.openings import Openings
from cutlayer.party.pace import Pace
from cutlayer.party.probing import Probing
from cutlayer.party.received import Undecoded
from cutlayer.party.replicas import Replicas
from cutlayer.party.saved import begin_with_saved
from cutlayer.party.sealed import Seals
from cutlayer.party.setting import Setting
from cutlayer.party.telling import Telling
from cutlayer.party.working import Segments, Workbench
from cutlayer.plan.plan import Plan
from cutlayer.protocol import wire
from cutlayer.protocol.events import (
    Action,
    Broke,
    Commit,
    Connected,
    Decide,
    Done,
    Drop,
    Event,
    Fail,
    Finish,
    Lap,
    Lasting,
    Lost,
    Movement,
    Open,
    Ran,
    Received,
    Restore,
    Run,
    Send,
    Step,
    Store,
    Tell,
)
from cutlayer.protocol.messages import Backward, Control, Forward, Leave, Message, Ping, Rows, Sealed, State
from cutlayer.protocol.route import Route
from cutlayer.protocol.session import Session
from cutlayer.transport.channel import Channel


class Party:
    """Party `name` in a run of `plan`.

    `replicas` are its own, or those of all parties in this process. `loader` has its rows, if it brings any; `secret`
    is its own 32 bytes, the key of all its random streams. `seals` are for what the conductor forwards: states, and
    frames between parties without a link. After the run `error` is None if it ended as planned.
    """

    def __init__(
        self,
        plan: Plan,
        name: str,
        *,
        replicas: Replicas,
        secret: bytes,
        loader: Loader | None = None,
        observers: Sequence[Observer] = (),
        seals: Seals | None = None,
        setting: Setting = Setting(),  # noqa: B008 (frozen)
    ) -> None:
        self.plan, self.name = plan, name
        counted = loader.rows if loader else Rows()
        rows = Rows(counted.train, counted.held_out, setting.nonce)
        self.session = Session(
            plan,
            name,
            rows,
            agendas=setting.agendas,
            ahead=setting.ahead,
            task=setting.task,
            standing=setting.standing,
        )
        self.links: dict[str, Channel] = {}
        self.replicas = replicas
        self.over = False
        self.error: CutlayerError | None = None
        self.sent_before = self.received_before = 0
        """Bytes, by the parties of earlier attempts in this process."""
        self._observers: list[Observer] = [*observers] if setting.saver is None else [setting.saver, *observers]
        self.saver = setting.saver
        audited = any(isinstance(observer, Audit) for observer in observers)
        self._pace = Pace(name, setting.micro_batches)
        self._coding = Coding(plan, secret=secret, loader=loader)
        self.accounting = Accounting(plan, name, setting.ledger)
        self._defending = Defending(
            plan,
            name,
            secret=secret,
            run=lambda: self.session.run,
            loader=loader,
            accounting=self.accounting,
            witnesses=Witnesses(module=self._module, taps=setting.taps, hijack=setting.hijack),
        )
        self._telling = Telling(
            plan,
            name,
            run=lambda: self.session.run,
            codec=self._coding.name,
            defence=self._defending.name,
            audited=audited,
        )
        probing = Probing(plan, name, secret=secret, tell=self.tell)
        self._bench = Workbench(
            plan, self.replicas, self._coding, self._defending, probing, secret=secret, loader=loader
        )
        self._judging = Judging(plan, name, replicas, steps=self.session.steps_of_round)
        self._mover = Mover(
            plan,
            name,
            self.replicas,
            segment=self._bench.segment,
            run=lambda: self.session.run,
            steps=lambda: sum(map(self.session.total_steps, plan.owners)),
            seals=seals,
            loader=loader,
            masked=self._masked(seals, setting.openings),
        )
        self._forwarding = Forwarding(plan, name, run=lambda: self.session.run, seals=seals)
        self._stopped = False
        """Whether an observer has ended the run."""
        self._steps_done: dict[str, int] = {}
        self._events: deque[Event] = deque()
        self._urgent: deque[Event] = deque()
        """What goes first: what has failed, and what a segment gave, which can leave before the next one runs."""
        self._keeping = Keeping(
            name,
            replicas,
            Notes(self._coding, self._defending, probing, self._judging, self._pace),
            saver=setting.saver,
            feed=self._events.append,
            post=setting.post,
        )

    def _masked(self, seals: Seals | None, openings: Openings | None) -> MaskedSum | None:
        """Its hand at sums under masks, if the plan has any."""
        if not self.plan.terms.secure_aggregation:
            return None
        return MaskedSum(
            self.plan,
            self.name,
            self.replicas,
            run=lambda: self.session.run,
            seals=seals,
            openings=openings,
            present=lambda: self.session.members.keys(),
        )

    @property
    def sent_bytes(self) -> int:
        """Bytes of frames that this process sent for the party."""
        return self.sent_before + sum(link.sent_bytes for link in self.links.values())

    @property
    def received_bytes(self) -> int:
        """Bytes of frames that came to the party in this process."""
        return self.received_before + sum(link.received_bytes for link in self.links.values())

    @property
    def lasting(self) -> bool:
        """Whether the run can be taken up again from this party's saves."""
        return self.saver is not None

    @property
    def answers(self) -> dict[str, dict[str, Tensor]]:
        """Of predictions: what each segment that answers gave, by owner of the rows, in the order of the rows."""
        return self._bench.collected()

    @property
    def segments(self) -> Segments:
        """This party's replicas that have been at work or were given a state, each with the segment at work on it."""
        return Segments(self.plan, self.name, self.replicas, partial(self._bench.segment, changes=False))

    def weights(self, owner: str = "") -> dict[str, Tensor]:
        """The parameters and buffers of this party's own segments, by their names in the uncut model.

        A server that has a replica for each client gives that of `owner`, by default the first client's.
        """
        owner = owner or (self.name if self.name in self.plan.owners else self.plan.owners[0])
        route = Route(self.plan, self.name, owner)
        return {
            name.removeprefix(MODEL): tensor.detach().cpu().clone()
            for segment in route.segments
            for name, tensor in self.replicas.state(route.replicas[segment]).tensors.items()
            if name.startswith(MODEL)
        }

    def restore(self, owner: str, weights: Mapping[str, Tensor]) -> None:
        """For `owner`'s rows begin with these parameters and buffers, by their names in the uncut model.

        Raises `RunError` for what is not there or does not fit.
        """
        route = Route(self.plan, self.name, owner)
        for segment in route.segments:
            begin_with_saved(self.replicas, route.replicas[segment], weights, self.name)

    def take_up_last(self) -> None:
        """Become what the last save has of this party, whose part of the run is over."""
        self.tell(self._keeping.take_up_last())

    # ------------------------------------------------------------------ what drives a party

    def connect(self, channel: Channel) -> None:
        """A link to a peer stands. A newer link replaces the older one."""
        if (older := self.links.get(channel.peer)) is not None:
            older.close()
        self.links[channel.peer] = channel
        self.feed(Connected(channel.peer))

    def deliver(self, peer: str, frame: wire.Frame) -> None:
        """A frame arrived from `peer`."""
        try:
            message, views = wire.decode(frame)
        except FrameRefused as error:
            detail = f"{error}; all parties run the same version of cutlayer"
            self.feed(Broke(RemoteProtocolError("no-message", peer, detail)))
            return
        if isinstance(message, Ping | Leave):  # a link keeps those to itself: here they would only pass for life
            self.feed(Broke(RemoteProtocolError("out-of-order", peer, "a control frame among the run's messages")))
            return
        self._received(peer, message, views, frame.nbytes)

    def _received(self, peer: str, message: Message | Control, views: Sequence[memoryview], nbytes: int) -> None:
        payload = None
        if isinstance(message, Forward | Backward):
            self.tell(self._telling.crossed(peer, message, views, nbytes, sent=False))
            payload = Undecoded(message.tensors, views, peer, message)
        elif isinstance(message, State):
            self.tell(*self._telling.moved(message, views, nbytes, sent=False))
            payload = Undecoded(message.tensors, views)
        elif isinstance(message, Sealed):
            payload = Undecoded(message.tensors, views)
        self.feed(Received(peer, message, payload))

    def feed(self, event: Event) -> None:
        """Let the session decide about an event, and do what it says, until nothing is left to do here."""
        self._events.append(event)
        while self._urgent or self._events:
            for action in self.session.feed((self._urgent or self._events).popleft()):
                self._perform(action)
                if self._urgent and isinstance(self._urgent[0], Broke):
                    break  # what follows may rest on what has failed: a mean, say, on a share that was refused

    # ------------------------------------------------------------------ the session's actions

    def _perform(self, action: Action) -> None:
        match action:
            case Send():
                self._send(action)
            case Tell():
                self.tell(*self._telling.scored(action))
            case Drop():
                self.links.pop(action.peer).close()
                self.tell(Noticed(party=self.name, sentence=f"{action.peer} was sent away: {action.reason}"))
            case Fail() | Done():
                self._end(action)
            case Restore() | Store() | Commit() | Finish():
                self._guarded(self._keep, action, f"{self.name} failed to keep or take up a save")
            case Lap() | Decide():
                self._measure(action)
            case _:
                self._work(action)

    def _end(self, action: Fail | Done) -> None:
        self.over = True
        if isinstance(action, Fail):
            self.error = action.error
            if isinstance(action.error, Misaligned):
                self._bench.explain(action.error, self.name)

    def _measure(self, action: Lap | Decide) -> None:
        if isinstance(action, Lap):
            self._pace.lap(action)
            return
        decided, paced = self._pace.decide()
        self.tell(paced)
        self._events.append(decided)

    def _work(self, action: Run | Open | Step | Movement) -> None:
        match action:
            case Run():
                self._guarded(self._run, action, f"{action.node} of {self.name} failed at {action.ticket}")
            case Open():
                self._guarded(self._open, action, f"{self.name} could not open what {action.message.source} sealed")
            case Step():
                self._guarded(self._step, action, f"{action.replica[0]} of {self.name} failed")
            case _:
                self._guarded(self._move, action, f"{self.name} failed to move a state")

    def _guarded(self, work: Callable[[Any], None], action: Action, failed: str) -> None:
        """What goes wrong in the user's model or rows ends the run for all, with a sentence, not a silence."""
        try:
            work(action)
        except CutlayerError as error:
            self._break(error)
        except Exception as error:
            failure = SegmentFailed(failed, error)
            failure.__cause__ = error
            self._break(failure)

    def _break(self, error: CutlayerError) -> None:
        """Nothing else is done before the session has heard of it."""
        self._urgent.appendleft(Broke(error))

    def _keep(self, action: Lasting) -> None:
        self.tell(*self._keeping.keep(action))

    def _run(self, run: Run) -> None:
        start = time.perf_counter()
        result: Any
        if run.direction == "load":
            (result, mark), sums = self._bench.load(run), None
        else:
            (result, sums), mark = self._bench.run(run), b""
        self.tell(Spent(party=self.name, on=run.direction, seconds=time.perf_counter() - start))
        events = self._events if run.direction == "load" else self._urgent
        events.append(Ran(run.ticket, run.node, run.direction, result, sums, mark))

    def _open(self, action: Open) -> None:
        """The frame that a fellow sealed for me, as if it had come by a link of its own."""
        message, payload = action.message, action.payload
        frame = self._forwarding.open(message, payload.views[0])
        inner, views = wire.decode(frame)
        if not isinstance(inner, Forward | Backward):
            raise RemoteProtocolError("wrong-seal", message.source, f"a sealed {type(inner).__name__}")
        self.tell(self._telling.crossed(message.source, inner, views, frame.nbytes, sent=False))
        self._events.append(Received(message.source, inner, Undecoded(inner.tensors, views, message.source, inner)))

    def _step(self, step: Step) -> None:
        start = time.perf_counter()
        self._judging.before(step)
        cached = self._bench.step(step)
        turned = self._judging.after(step)
        self.tell(Spent(party=self.name, on="step", seconds=time.perf_counter() - start), *turned)
        if cached:
            self.tell(Cached(party=self.name, segment=step.replica[0], round=step.round, stale=cached))
        for owner in step.owners:
            if step.replica[0] == self.session.first_segment(owner):
                behind = self._steps_done.get(owner, self.session.steps_behind(owner))
                done = self._steps_done[owner] = behind + 1
                total = self.session.total_steps(owner)
                self.tell(
                    Progressed(party=self.name, owner=owner, round=step.round, done=done, total=total, stale=step.stale)
                )

    def _move(self, movement: Movement) -> None:
        start = time.perf_counter()
        parcels = self._mover.move(movement)
        self.tell(Spent(party=self.name, on="move", seconds=time.perf_counter() - start))
        for parcel in parcels:
            self._transmit(parcel.message, [memoryview(parcel.data)], parcel.payload_bytes)

    def _send(self, send: Send) -> None:
        if isinstance(send.payload, Undecoded):
            self._transmit(send.message, send.payload.views, to=send.peer)
        elif isinstance(send.message, Forward | Backward):
            try:
                released = self._defending.release(send.peer, send.message, send.payload or ())
                message, payload = self._coding.encode(send.message, released)
            except CodecError as error:
                self._break(RunError(f"{send.message.edge} for {send.message.ticket}: {error}"))
            except CutlayerError as error:
                self._break(error)
            else:
                self._transmit(message, payload, to=send.peer)
        else:
            self._transmit(send.message, (), to=send.peer)

    def _transmit(
        self,
        message: Message | Control,
        payload: Sequence[memoryview],
        payload_bytes: int = 0,
        *,
        to: str = "",
    ) -> None:
        """Send a message to a peer; a state goes to the party it is for, by the conductor if there is no other way."""
        if isinstance(message, State):
            to = message.target if message.target in self.links else self.plan.conductor
        sealed = to in self.session.fellows
        channel = self.links.get(self.plan.conductor if sealed else to)
        if channel is None:
            return
        start = time.perf_counter()
        try:
            encoded = self._forwarding.wrap(to, message, payload) if sealed else wire.encode(message, payload)
            nbytes = channel.send(encoded, wait=False, urgent=isinstance(message, Backward) and not sealed)
        except ChannelClosed:
            return  # whoever reads this link will say so, after the peer's last words
        except ChannelError as error:
            self._events.append(Lost(to, str(error)))
            return
        self.tell(Spent(party=self.name, on="wire", seconds=time.perf_counter() - start))
        if isinstance(message, Forward | Backward):
            self.tell(self._telling.crossed(to, message, payload, nbytes, sent=True))
        elif isinstance(message, State):
            self.tell(*self._telling.moved(message, payload, nbytes, sent=True, payload_bytes=payload_bytes))

    def _module(self, edge: str, owner: str) -> nn.Module:
        """This party's end of an edge, for an owner's rows."""
        ends = next((e.source, e.target) for e in self.plan.topology.edges if e.name == edge)
        replicas = Route(self.plan, self.name, owner).replicas
        key = next(replicas[end] for end in ends if end in replicas)
        return self._bench.segment(key, changes=False).replica.module

    # ------------------------------------------------------------------ facts

    def tell(self, *facts: Fact) -> None:
        """Tell all observers; one that wants to stop ends the run before the next release."""
        for fact in facts:
            for observer in self._observers:
                if (stop := observer(fact)) is not None and not (self.over or self._stopped):
                    self._stopped = True
                    self._break(RunError(stop.reason))
