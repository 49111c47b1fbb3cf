"""A party: a session, the replicas and rows it works on, and the links to its peers.

One thread owns all of it. Whoever drives a party, the loop over a network or the simulator, only calls `connect`,
`deliver` and `feed`; everything a mini-batch meets at this party happens below `feed`, in order.
"""

import copy
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cutlayer.codec import raw
from cutlayer.data.loader import Loader
from cutlayer.errors import ChannelClosed, ChannelError, CutlayerError, RunError, SegmentFailed
from cutlayer.model.loss import Loss
from cutlayer.model.replica import Replica
from cutlayer.model.segment import ModelSegment
from cutlayer.observe.facts import Crossed, Fact, Noticed, Observer, Progressed, Scored, Spent, metrics
from cutlayer.plan.plan import Plan
from cutlayer.plan.tensors import TensorShape
from cutlayer.protocol import wire
from cutlayer.protocol.events import (
    Action,
    Broke,
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
from cutlayer.protocol.messages import Backward, Forward, Rows
from cutlayer.protocol.session import Session
from cutlayer.transport.channel import Channel

Tensors = tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class Undecoded:
    """A received payload: bytes, and what they are agreed to be. Decoded when a segment needs it, not before."""

    shapes: tuple[TensorShape, ...]
    views: Sequence[memoryview]

    def decode(self, device: torch.device) -> Tensors:
        return tuple(
            raw.decode(view, shape).to(device) for view, shape in zip(self.views, self.shapes, strict=True)
        )  # fmt: skip


class Party:
    """Party `name` in a run of `plan`.

    `parts` are the segments' initial modules by name; replicas are copies of them. `loader` has this party's rows, if
    it brings any; `secret` is its own 32 bytes, the key of all its random streams. After the run `error` is None if
    it ended as planned.
    """

    def __init__(
        self,
        plan: Plan,
        name: str,
        *,
        parts: Mapping[str, nn.Module],
        secret: bytes,
        loader: Loader | None = None,
        observers: Sequence[Observer] = (),
        device: str | torch.device = "cpu",
    ) -> None:
        self.plan, self.name = plan, name
        self.session = Session(plan, name, loader.rows if loader else Rows())
        self.links: dict[str, Channel] = {}
        self.segments: dict[tuple[str, str], ModelSegment] = {}
        self.over = False
        self.error: CutlayerError | None = None
        self._parts, self._secret, self._loader = parts, secret, loader
        self._observers = list(observers)
        self._device = torch.device(device)
        self._carries = {edge.name: plan.topology.source_kind(edge) for edge in plan.topology.edges}
        self._loss = Loss(plan.terms.training.loss)
        self._steps_done: dict[str, int] = {}
        self._events: deque[Event] = deque()

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
        except ChannelError as error:
            self.feed(Lost(peer, str(error)))
            return
        payload = None
        if isinstance(message, Forward | Backward):
            self._tell_crossed(peer, message, frame.nbytes, sent=False)
            payload = Undecoded(message.tensors, views)
        self.feed(Received(peer, message, payload))

    def feed(self, event: Event) -> None:
        """Let the session decide about an event, and do what it says, until nothing is left to do here."""
        self._events.append(event)
        while self._events:
            for action in self.session.feed(self._events.popleft()):
                self._perform(action)

    # ------------------------------------------------------------------ the session's actions

    def _perform(self, action: Action) -> None:
        match action:
            case Run():
                self._guarded(self._run, action)
            case Send():
                self._send(action)
            case Step():
                self._guarded(self._step, action)
            case Tell():
                self._tell_scores(action)
            case Drop():
                self.links.pop(action.peer).close()
                self.tell(Noticed(party=self.name, sentence=f"{action.peer} was sent away: {action.reason}"))
            case Done() | Fail():
                self.over = True
                self.error = action.error if isinstance(action, Fail) else None

    def _guarded(self, work: Callable[..., None], action: Run | Step) -> None:
        """What goes wrong in the user's model or rows ends the run for all, with a sentence, not a silence."""
        try:
            work(action)
        except CutlayerError as error:
            self._events.append(Broke(error))
        except Exception as error:
            what = action.node if isinstance(action, Run) else action.replica[0]
            at = f" at {action.ticket}" if isinstance(action, Run) else ""
            failed = SegmentFailed(f"{what} of {self.name} failed{at}", error)
            failed.__cause__ = error
            self._events.append(Broke(failed))

    def _run(self, run: Run) -> None:
        start = time.perf_counter()
        result: Tensors | dict[str, Tensors]
        sums = None
        if run.direction == "load":
            assert self._loader is not None
            assert run.batch is not None
            result = self._loader.load(run.node, run.batch)
        else:
            segment = self._segment(run.replica)
            inputs = {edge: self._tensors(value) for edge, value in run.inputs.items()}
            if run.direction == "forward":
                outcome = segment.forward(run.ticket, inputs)
                result, sums = outcome.outputs, outcome.sums
            else:
                result = segment.backward(run.ticket, inputs)
        self.tell(Spent(party=self.name, on=run.direction, seconds=time.perf_counter() - start))
        self._events.append(Ran(run.ticket, run.node, run.direction, result, sums))

    def _step(self, step: Step) -> None:
        start = time.perf_counter()
        self._segment(step.replica).step(step.normaliser, step.round)
        self.tell(Spent(party=self.name, on="step", seconds=time.perf_counter() - start))
        if step.replica[0] == self.session.first_segment(step.owner):
            done = self._steps_done[step.owner] = self._steps_done.get(step.owner, 0) + 1
            total = self.session.total_steps(step.owner)
            self.tell(Progressed(party=self.name, owner=step.owner, round=step.round, done=done, total=total))

    def _send(self, send: Send) -> None:
        channel = self.links.get(send.peer)
        if channel is None:
            return
        payload = [raw.encode(tensor) for tensor in send.payload] if send.payload is not None else ()
        start = time.perf_counter()
        try:
            nbytes = channel.send(wire.encode(send.message, payload))
        except ChannelClosed:
            return  # whoever reads this link will say so, after the peer's last words
        except ChannelError as error:
            self._events.append(Lost(send.peer, str(error)))
            return
        self.tell(Spent(party=self.name, on="wire", seconds=time.perf_counter() - start))
        if isinstance(send.message, Forward | Backward):
            self._tell_crossed(send.peer, send.message, nbytes, sent=True)

    # ------------------------------------------------------------------ replicas and tensors

    def _segment(self, replica: tuple[str, str]) -> ModelSegment:
        """The segment at work on a replica; the replica is made from the initial module when first needed."""
        if replica not in self.segments:
            name = replica[0]
            node = self.plan.topology.segment(name)
            inputs = self.plan.topology.inputs(name)
            labels = [edge.name for edge in inputs if self.plan.topology.source_kind(edge) == "labels"]
            module = copy.deepcopy(self._parts[name]).to(self._device)
            self.segments[replica] = ModelSegment(
                name,
                Replica(module, self.plan.terms.training),
                secret=self._secret,
                returns={
                    edge.name: tuple(
                        spec.differentiable and self.plan.topology.source_kind(edge) is None
                        for spec in self.plan.contents.edges[edge.name]
                    )
                    for edge in inputs
                },
                loss=self._loss if node.loss else None,
                labels_edge=labels[0] if node.loss else "",
            )
        return self.segments[replica]

    def _tensors(self, value: Undecoded | Tensors) -> Tensors:
        if isinstance(value, Undecoded):
            return value.decode(self._device)
        return tuple(tensor.to(self._device) for tensor in value)

    # ------------------------------------------------------------------ facts

    def tell(self, fact: Fact) -> None:
        """Tell all observers; one that wants to stop ends the run before the next release."""
        for observer in self._observers:
            if (stop := observer(fact)) is not None and not self.over:
                self._events.append(Broke(RunError(stop.reason)))

    def _tell_crossed(self, peer: str, message: Forward | Backward, nbytes: int, *, sent: bool) -> None:
        fact = Crossed(
            party=self.name,
            peer=peer,
            edge=message.edge,
            way="forward" if isinstance(message, Forward) else "backward",
            sent=sent,
            purpose=message.ticket.purpose,
            rows=message.tensors[0].shape[0] if message.tensors and message.tensors[0].shape else 0,
            carries=self._carries.get(message.edge),
            shapes=message.tensors,
            payload_bytes=sum(tensor.nbytes for tensor in message.tensors),
            frame_bytes=nbytes,
        )
        self.tell(fact)

    def _tell_scores(self, told: Tell) -> None:
        for owner, sums in told.sums.items():
            self.tell(
                Scored(
                    party=self.name,
                    owner=owner,
                    turn=told.turn,
                    round=told.round,
                    purpose=told.purpose,
                    metrics=metrics(sums),
                )
            )
