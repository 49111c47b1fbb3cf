"""What moves between turns: replicas handed on, weights averaged, gradients summed.

A movement acts at a party when the replicas of that party it needs are through with the work before (their gates have
come to it) and the states that are due to this party have arrived. Sums are added up in the schedule's order, never in
the order of arrival. All states go by the conductor, which forwards what is not its own, once each.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from cutlayer.errors import RemoteProtocolError
from cutlayer.plan.plan import Plan
from cutlayer.plan.schedule import Average, Entrust, HandOver, Movement, Share
from cutlayer.protocol.events import Action, Add, Give, Replica, Send, Settle, Spread, Step, Take, Value
from cutlayer.protocol.messages import State, StateKind
from cutlayer.protocol.route import state_limit_bytes
from cutlayer.protocol.traffic import Traffic

DUE: Mapping[type[Movement], StateKind] = {HandOver: "replica", Share: "share", Average: "mean", Entrust: "order"}
"""The kind of state that each movement moves, in the end."""
Way = tuple[str, str, StateKind]
"""Source, target and kind of a state."""


@dataclass(slots=True, kw_only=True)
class Moving:
    """A movement that is open at this party."""

    number: int
    work: Movement
    replicas: tuple[Replica, ...]
    """Mine, that it needs."""
    ways: tuple[Way, ...] = ()
    """Of the states that I send or am sent."""
    kinds: list[StateKind] = field(default_factory=list)
    """What is due now, and what is due after that."""
    awaited: dict[str, tuple[State, Value] | None] = field(default_factory=dict)
    """By source: the states of the first kind that are due to me, once they have arrived."""
    missing: int = 0
    """How many of them have not."""
    sums: bool = False
    """It adds to a sum of mine, or ends it."""
    blocks: bool = False
    """It must be over before anything after it may begin."""


class Movements:
    """The open movements at party `me`. Appends to the traffic's `out`; replicas wait at the traffic's gates."""

    def __init__(self, plan: Plan, me: str, traffic: Traffic) -> None:
        self._plan, self._me, self._traffic = plan, me, traffic
        self._conducts = plan.conductor == me
        self._aggregator = plan.aggregator
        self._averages = not plan.schedule.server_shared and me == plan.first["server"]
        """Whether replicas of my own are averaged."""
        self._client_segments = frozenset(plan.client_segments)
        self._limit_bytes = state_limit_bytes(plan)
        self._open: dict[int, Moving] = {}
        self._passing: dict[int, set[Way]] = {}
        """Conductor: the states that are still to be forwarded."""
        self._entrusting = -1
        """Conductor: the movement that brings all who need it the key of the order of rows."""
        self._ends = 0
        """Open movements that must be over before anything after them."""
        self._stirred = False
        self._normaliser = 0.0
        """Of the sum of gradients that is under way, as far as I know it."""

    @property
    def idle(self) -> bool:
        """Whether nothing moves, or is to be forwarded, any more."""
        return not self._open and not self._passing

    @property
    def blocked(self) -> bool:
        """Whether something must be over, the sum of mine say, before anything after it may begin."""
        return self._ends > 0 or self._entrusting in self._passing

    @property
    def stirred(self) -> bool:
        """Whether something has happened that a movement may have waited for."""
        return self._stirred or self._traffic.left

    def waiting_for(self) -> str:
        """Whose states are due first, for a person."""
        return ", ".join(sorted(self.owing)) or "nobody"

    @property
    def owing(self) -> set[str]:
        """Whose states are due first."""
        for number in sorted({*self._passing, *self._open}):
            due = {source for source, _, _ in self._passing.get(number, ())}
            if (moving := self._open.get(number)) is not None:
                due.update(source for source, came in moving.awaited.items() if came is None)
            if due:
                return due
        return set()

    # ------------------------------------------------------------------ opening

    def open(self, number: int, work: Movement) -> None:
        """The schedule has come to a movement in which I take part."""
        states = list(self._states(work, "" if self._conducts or self._me == self._aggregator else self._me))
        moving = Moving(
            number=number,
            work=work,
            replicas=tuple(self._replicas(work)),
            ways=tuple(way for way in states if self._me in way[:2]),
            sums=isinstance(work, Share | Average) and self._sums(work),
        )
        moving.kinds = list(dict.fromkeys([*(kind for _, _, kind in moving.ways), DUE[type(work)]]))
        self._await(moving)
        moving.blocks = (moving.sums and isinstance(work, Average)) or isinstance(work, Entrust)
        self._stirred = True
        if moving.replicas or moving.awaited or moving.sums or (isinstance(work, Entrust) and work.source == self._me):
            self._open[number] = moving
            self._ends += moving.blocks
            for replica in moving.replicas:
                self._traffic.gates[replica].append(number, None, 0)
        if self._conducts and (passing := {way for way in states if self._me not in way[:2]}):
            self._passing[number] = passing
            if isinstance(work, Entrust):
                self._entrusting = number

    def _await(self, moving: Moving) -> None:
        """What is due to me of the kind that is due now."""
        moving.awaited = {s: None for s, target, kind in moving.ways if target == self._me and kind == moving.kinds[0]}
        moving.missing = len(moving.awaited)

    def _states(self, work: Movement, client: str = "") -> Iterator[Way]:
        """Every state that the movement sends between parties, or to or from a client."""
        if isinstance(work, HandOver):
            yield work.source, work.target, "replica"
            return
        if isinstance(work, Entrust):
            yield from ((work.source, target, "order") for target in work.targets)
            return
        server, aggregator = self._plan.first["server"], self._aggregator
        if not self._client_segments.intersection(work.segments):
            return
        clients: Iterable[str] = work.holders if isinstance(work, Share) else work.takers
        among = () if isinstance(work, Share) else [each for each in work.among if client in ("", each)]
        yield from ((aggregator, party, "call") for party in among)
        yield from ((party, aggregator, "unmask") for party in among)
        for party in (client,) if client else clients:
            yield (party, aggregator, "share") if isinstance(work, Share) else (aggregator, party, "mean")
        if self._plan.straddling and aggregator != server and not client:
            yield (server, aggregator, "share") if isinstance(work, Share) else (aggregator, server, "mean")

    def _sums(self, work: Share | Average) -> bool:
        mine = self._averages and not self._client_segments.issuperset(work.segments)
        return mine or (self._me == self._aggregator and bool(self._client_segments.intersection(work.segments)))

    def _replicas(self, work: Movement) -> Iterable[Replica]:
        """My replicas that must have come to the movement."""
        if isinstance(work, Entrust):
            return ()
        if isinstance(work, HandOver):
            return self._held(self._me, work.segments) if self._me in (work.source, work.target) else ()
        if not self._averages:
            return self._held(self._me, work.segments)
        if isinstance(work, Share):
            return [replica for owner in work.holders for replica in self._held(owner, work.segments)]
        return self._traffic.at_work(work.segments)

    def _held(self, owner: str, segments: Sequence[str]) -> list[Replica]:
        replicas = self._traffic.route(owner).replicas
        return [replica for name, replica in replicas.items() if name in segments and replica[1] == owner]

    # ------------------------------------------------------------------ what peers send

    def arrived(self, peer: str, message: State, payload: Value) -> None:
        """A state arrived, unopened: forward it, or keep it until its time has come. Raises `RemoteProtocolError`."""
        if peer not in (message.source, self._plan.conductor) or (self._conducts and peer != message.source):
            raise RemoteProtocolError("wrong-state", peer, f"it speaks for {message.source}")
        if len(message.tensors) != 1 or message.tensors[0].nbytes > self._limit_bytes:
            raise RemoteProtocolError("wrong-state", peer, f"more than {self._limit_bytes:,} bytes, or no state")
        if message.target != self._me:
            self._forward(peer, message, payload)
            return
        moving = self._open.get(message.number)
        if moving is None or moving.awaited.get(message.source, message) is not None:
            raise RemoteProtocolError("wrong-state", peer, f"none is due from {message.source} at {message.number}")
        self._check(peer, message, moving)
        if message.kind == "mean" and self._owes_before(message.number):
            raise RemoteProtocolError("wrong-state", peer, "the mean came before my share, of which it is the mean")
        moving.awaited[message.source] = message, payload
        moving.missing -= 1
        self._stirred = True

    def _owes_before(self, number: int) -> bool:
        """Whether a share of mine before this movement has not gone yet."""
        return any(isinstance(each.work, Share) and each.number < number for each in self._open.values())

    def _forward(self, peer: str, message: State, payload: Value) -> None:
        passing = self._passing.get(message.number, set())
        if (way := (message.source, message.target, message.kind)) not in passing:
            detail = f"nothing goes from {message.source} to {message.target} at {message.number}, or not twice"
            raise RemoteProtocolError("wrong-state", peer, detail)
        passing.remove(way)
        if not passing:
            del self._passing[message.number]
            self._stirred = True
        self._traffic.out.append(Send(message.target, message, payload))

    def _check(self, peer: str, message: State, moving: Moving) -> None:
        due, work = moving.kinds[0], moving.work
        if message.kind != due:
            raise RemoteProtocolError(
                "wrong-state", peer, f"a {message.kind} at {message.number}, where a {due} is due"
            )
        right = message.normaliser == 0
        if isinstance(work, Share | Average) and work.kind == "gradients" and due in ("share", "mean"):
            known = self._normaliser
            right = math.isfinite(message.normaliser) and message.normaliser > 0
            right = right and known in {0.0, message.normaliser}
            if right and message.target == self._aggregator:
                self._normaliser = message.normaliser
        if not right:
            raise RemoteProtocolError("wrong-normaliser", peer, f"{message.normaliser} at {message.number}")

    # ------------------------------------------------------------------ acting

    def proceed(self) -> None:
        """Let every movement act whose time has come, in the schedule's order; sums wait for those before them."""
        for moving in list(self._open.values()):
            while len(moving.kinds) > 1 and self._is_due(moving):
                self._unmask(moving)
            if self._is_due(moving):
                del self._open[moving.number]
                self._ends -= moving.blocks
                self._act(moving)
            elif moving.sums:
                break
        self._stirred = self._traffic.left = False

    def _is_due(self, moving: Moving) -> bool:
        gates = self._traffic.gates
        return not moving.missing and all(gates[replica].has_come_to(moving.number) for replica in moving.replicas)

    def _act(self, moving: Moving) -> None:
        match moving.work:
            case HandOver() as work:
                self._hand_over(moving, work)
            case Share() as work:
                self._share(moving, work)
            case Average() as work:
                self._average(moving, work)
            case Entrust() as work:
                self._entrust(moving, work)
        self._traffic.leave([self._traffic.gates[replica] for replica in moving.replicas])

    def _hand_over(self, moving: Moving, work: HandOver) -> None:
        if work.source == self._me:
            self._give(moving, "replica", work.target, moving.replicas)
        for message, payload in self._came(moving):
            self._out(Take(message, "weights", moving.replicas, payload))

    def _entrust(self, moving: Moving, work: Entrust) -> None:
        for target in work.targets if work.source == self._me else ():
            self._give(moving, "order", target, ())
        for message, payload in self._came(moving):
            self._out(Take(message, "weights", (), payload))

    def _share(self, moving: Moving, work: Share) -> None:
        """Mine go to the aggregator; what is summed here is added, owner by owner in the schedule's order."""
        server = self._plan.first["server"]
        holders: Mapping[str, float] = work.holders if moving.sums else {self._me: work.holders[self._me]}
        for owner, weight in holders.items():
            mine = tuple(replica for replica in moving.replicas if replica[1] == owner)
            straddles = self._me == server and bool(self._plan.straddling)
            if mine and self._aggregator != self._me and (owner == self._me or straddles):
                normaliser = self._traffic.joined_normaliser if work.kind == "gradients" else 0.0
                sums = (normaliser, work.round, work.among)
                self._out(Give(moving.number, "share", work.kind, self._aggregator, mine, *sums))
                self._normaliser = normaliser
            if moving.sums and (came := moving.awaited.get(owner)):
                self._out(Add(work.kind, weight, owner, *came, among=work.among))
            if moving.sums and (came := moving.awaited.get(server)) and owner != server:
                self._out(Add(work.kind, weight, owner, *came))
            if moving.sums and mine:
                self._out(Add(work.kind, weight, owner, replicas=mine))

    def _unmask(self, moving: Moving) -> None:
        """Before there is a mean: the aggregator, which has all shares, calls for keys; each client gives its own."""
        work, due = moving.work, moving.kinds.pop(0)
        assert isinstance(work, Average)
        for source, target, kind in moving.ways:
            if source == self._me and kind == due:
                self._out(Give(moving.number, kind, work.kind, target, (), 0.0, work.round, work.among))
        for message, payload in self._came(moving):
            self._out(Take(message, work.kind, (), payload))
        self._await(moving)

    def _average(self, moving: Moving, work: Average) -> None:
        if self._me == self._aggregator:
            targets = tuple(target for source, target, kind in moving.ways if source == self._me and kind == "mean")
            self._out(Spread(moving.number, work.kind, targets, self._normaliser))
            self._normaliser = 0.0
        if self._averages:
            segments = tuple(name for name in work.segments if name not in self._client_segments)
            self._out(Settle(segments, *next(self._came(moving), ())))
            return
        for message, payload in self._came(moving):
            self._out(Take(message, work.kind, moving.replicas, payload))
            if work.kind == "gradients":
                owners = (self._me,) if self._normaliser else ()
                steps = [Step(replica, owners, work.round, message.normaliser) for replica in moving.replicas]
                self._traffic.out += steps
                self._normaliser = 0.0

    def _came(self, moving: Moving) -> Iterator[tuple[State, Value]]:
        return (came for came in moving.awaited.values() if came is not None)

    def _give(self, moving: Moving, kind: StateKind, target: str, replicas: tuple[Replica, ...]) -> None:
        self._out(Give(moving.number, kind, "weights", target, replicas))

    def _out(self, action: Action) -> None:
        self._traffic.out.append(action)
