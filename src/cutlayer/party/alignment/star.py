"""A party's place in the star of an alignment: who is here, what is carried to whom, when it is over. No I/O.

All dial the conductor, who may hold no ids itself. It gathers the parties, carries sealed notes between two others,
and ends the alignment for all once everybody has finished.
"""

import secrets
from collections import deque
from dataclasses import dataclass, field

from cutlayer.data.ids import Ids
from cutlayer.errors import PeerStopped, PlanError, RemoteProtocolError, RunError
from cutlayer.party.alignment.aligner import Aligner
from cutlayer.party.sealed import Seals
from cutlayer.plan.plan import Plan
from cutlayer.plan.tensors import TensorShape
from cutlayer.protocol.aligning import (
    VERSION,
    AlignTerms,
    Finished,
    Gathered,
    Join,
    Message,
    Note,
    Parcel,
    message_decoder,
    pack,
    run_of,
    seal_context,
    unpack,
)
from cutlayer.protocol.messages import SENTENCE, Bye
from cutlayer.protocol.wire import Frame, decode_of, encode


@dataclass(frozen=True, kw_only=True, slots=True)
class Circle:
    """Who aligns what: the plan's digest and conductor, and the terms that all must have asked for."""

    plan: str
    conductor: str
    terms: AlignTerms

    @property
    def parties(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((self.conductor, *self.terms.holders, self.terms.comparer)))

    def forwarded(self, party: str) -> tuple[str, ...]:
        """Those whose notes to and from this party the conductor carries."""
        known = dict.fromkeys((*self.terms.holders, self.terms.comparer))
        if party == self.conductor or party not in known:
            return ()
        return tuple(name for name in known if name not in (party, self.conductor))


def circle(plan: Plan, holders: tuple[str, ...], *, labels: str = "", at_least: int = 0, comparer: str = "") -> Circle:
    """The circle of those with a table. Raises `PlanError` with all that does not hold together."""
    parties = tuple(plan.terms.parties)
    faults = [
        f"{name!r} is no party of the plan; its parties are {', '.join(parties)}"
        for name in (*holders, labels, comparer)
        if name and name not in parties
    ]
    if len(set(holders)) < 2:
        faults.append("rows are aligned between two parties or more: name another that has a table with --with")
    if at_least:
        if labels not in holders:
            faults.append("--at-least needs --labels NAME: the party with the labels, whose row must be there")
        if not comparer:
            faults.append("--at-least needs --comparer NAME: the party that compares, and sees how many rows overlap")
        if at_least >= len(set(holders)):
            faults.append(f"--at-least {at_least}: only {len(set(holders)) - 1} others have a table")
    elif labels:
        faults.append("--labels goes with --at-least: without it all must hold a row")
    if faults:
        raise PlanError(faults)
    ring = tuple(name for name in parties if name in holders)
    terms = AlignTerms(holders=ring, comparer=comparer or ring[0], labels=labels, at_least=at_least)
    return Circle(plan=plan.digest, conductor=plan.conductor, terms=terms)


@dataclass(slots=True)
class Counts:
    """How many notes went out and came in, by party at the other end."""

    sent: dict[str, int] = field(default_factory=dict)
    heard: dict[str, int] = field(default_factory=dict)


class Seat:
    """One party, fed with frames by its peers' links. Whoever owns it sends the `letters` and calls `work`."""

    def __init__(self, party: str, circle: Circle, ids: Ids | None, seals: Seals | None, *, threads: int = 1) -> None:
        _check(party, circle, ids, seals)
        self.letters: deque[tuple[str, Frame]] = deque()
        self.aligner: Aligner | None = None
        self.run = ""
        self.over = False
        self.party, self.circle = party, circle
        self.conducts = party == circle.conductor
        self._ids, self._seals, self._threads = ids, seals, threads
        self._others = tuple(name for name in circle.parties if name != party)
        self._takes_part = party in (*circle.terms.holders, circle.terms.comparer)
        self._nonces = {party: secrets.token_hex(32)}
        self._counts = Counts()
        self._finished: set[str] = set()
        if not self.conducts:
            self._post(circle.conductor, Join(VERSION, circle.plan, circle.terms, self._nonces[party]))

    @property
    def peers(self) -> tuple[str, ...]:
        """Those with whom this party has a link."""
        return self._others if self.conducts else (self.circle.conductor,)

    @property
    def busy(self) -> bool:
        return self.aligner is not None and self.aligner.busy

    def awaited(self) -> str:
        """Who is to do something next, for a sentence."""
        if not self.run:
            missing = [name for name in self._others if name not in self._nonces] if self.conducts else []
            return ", ".join(missing) or self.circle.conductor
        if self.aligner is not None and not self.aligner.over:
            return self.aligner.awaited()
        missing = [name for name in self._others if name not in self._finished] if self.conducts else []
        return ", ".join(missing) or self.circle.conductor

    def work(self) -> None:
        """Do one part of the arithmetic. Raises as `feed`."""
        if self.aligner is not None:
            self.aligner.work()
            self._go_on()

    def feed(self, peer: str, frame: Frame) -> None:
        """Take in what a link brought. Raises `CutlayerError` with why this alignment cannot go on."""
        message, views = decode_of(frame, message_decoder)
        if isinstance(message, Parcel):
            self._carry(peer, message, views)
        else:
            self._hear(peer, message)
        self._go_on()

    def forget(self, peer: str) -> bool:
        """Whether the alignment can go on without the peer's link: until all are here, who left may come again."""
        if self.conducts and not self.run:
            self._nonces.pop(peer, None)
            return True
        return False

    def farewell(self, reason: str) -> list[tuple[str, Frame]]:
        """What to tell the peers of a failure."""
        return [(peer, encode(Bye(reason[:SENTENCE]))) for peer in self.peers]

    # ------------------------------------------------------------------ who is here

    def _hear(self, peer: str, message: Message) -> None:
        if isinstance(message, Bye):
            self._end(peer, message.reason)
        elif isinstance(message, Join) and self.conducts and peer not in self._nonces:
            self._admit(peer, message)
        elif isinstance(message, Gathered) and not self.conducts and not self.run:
            self._begin(message.nonces)
        elif isinstance(message, Finished) and self.conducts and self.run:
            self._finished.add(peer)
        else:
            raise RemoteProtocolError("turns", peer, f"its {type(message).__name__} is out of turn")

    def _admit(self, peer: str, join: Join) -> None:
        if join.version != VERSION:
            raise RunError(f"{peer} aligns by version {join.version}, {self.party} by {VERSION}: install one cutlayer")
        if join.plan != self.circle.plan:
            raise RunError(
                f"{peer} holds another plan than {self.party} ({join.plan[:12]}… and {self.circle.plan[:12]}…): give "
                "all the same files, and have them accept it"
            )
        if join.terms != self.circle.terms:
            raise RunError(
                f"{peer} asked for {_told(join.terms)}, {self.party} for {_told(self.circle.terms)}: all give the "
                "same --with, --at-least, --labels and --comparer"
            )
        self._nonces[peer] = join.nonce
        if all(name in self._nonces for name in self._others):
            for name in self._others:
                self._post(name, Gathered(self._nonces))
            self._begin(self._nonces)

    def _begin(self, nonces: dict[str, str]) -> None:
        mine = self._nonces[self.party]
        if set(nonces) != set(self.circle.parties) or nonces[self.party] != mine:
            raise RemoteProtocolError("gathered", self.circle.conductor, "it gathered others than those who align")
        self.run = run_of(self.circle.plan, self.circle.terms, nonces)
        if self._takes_part:
            self.aligner = Aligner(self.party, self.circle.terms, self.run, self._ids, threads=self._threads)

    def _end(self, peer: str, reason: str) -> None:
        if self.forget(peer):
            return
        if reason:
            raise PeerStopped(f"{peer} ended the alignment: {reason}")
        if self.conducts or self.party not in self._finished:
            raise RemoteProtocolError("turns", peer, "it ended the alignment before it was done")
        self.over = True

    # ------------------------------------------------------------------ notes

    def _carry(self, peer: str, parcel: Parcel, views: list[memoryview]) -> None:
        honest = parcel.source == peer if self.conducts else parcel.target == self.party
        known = {parcel.source, parcel.target} <= set(self.circle.parties) and parcel.source != parcel.target
        if not (self.run and known and honest and len(views) == 1):
            raise RemoteProtocolError("parcels", peer, f"a parcel from {parcel.source} to {parcel.target} is not its")
        if parcel.target != self.party:
            self._post(parcel.target, parcel, views[0])
            return
        if self.aligner is None or parcel.number != self._counts.heard.get(parcel.source, 0):
            raise RemoteProtocolError("parcels", peer, f"a parcel from {parcel.source} was lost, or came twice")
        self._counts.heard[parcel.source] = parcel.number + 1
        note, body = unpack(self._opened(parcel, views[0]))
        self.aligner.feed(parcel.source, note, body)

    def _opened(self, parcel: Parcel, data: memoryview) -> bytes | memoryview:
        if parcel.source not in self.circle.forwarded(self.party):
            return data
        assert self._seals is not None
        return self._seals.open(parcel.source, data, context=seal_context(self.circle.plan, self.run, parcel))

    def _send(self, target: str, note: Note, body: bytes | memoryview) -> None:
        number = self._counts.sent.get(target, 0)
        self._counts.sent[target] = number + 1
        parcel, data = Parcel(self.party, target, number, ()), pack(note, body)
        if target in self.circle.forwarded(self.party):
            assert self._seals is not None
            data = self._seals.seal(target, data, context=seal_context(self.circle.plan, self.run, parcel))
        shape = TensorShape("uint8", (len(data),))
        self._post(
            target if self.conducts else self.circle.conductor,
            Parcel(self.party, target, number, (shape,)),
            memoryview(data),
        )

    def _go_on(self) -> None:
        """Carry away what the aligner has said, and see whether that was all."""
        if self.aligner is not None:
            while self.aligner.outbox:
                self._send(*self.aligner.outbox.popleft())
        if not self.run or self.over or (self.aligner is not None and not self.aligner.over):
            return
        if self.party not in self._finished:
            self._finished.add(self.party)
            if not self.conducts:
                self._post(self.circle.conductor, Finished())
        if self.conducts and self._finished.issuperset(self.circle.parties):
            for name in self._others:
                self._post(name, Bye())
            self.over = True

    def _post(self, peer: str, message: Message, body: memoryview | None = None) -> None:
        self.letters.append((peer, encode(message, () if body is None else (body,))))


def _check(party: str, circle: Circle, ids: Ids | None, seals: Seals | None) -> None:
    """Raises `PlanError` if this party cannot take part so."""
    if party not in circle.parties:
        raise PlanError(f"{party} has no part in this alignment: those who have are {', '.join(circle.parties)}")
    if ids is None and party in circle.terms.holders:
        raise PlanError(
            f"{party} is one of those who align their rows: name its table with --data, its column with --id"
        )
    if ids is not None and party not in circle.terms.holders:
        raise PlanError(
            f"{party} is not one of those who align their rows: all add --with {party}, or leave --data out"
        )
    if (others := circle.forwarded(party)) and seals is None:
        raise PlanError(
            f"what {party} and {' or '.join(others)} say to each other travels sealed by {circle.conductor}: give "
            f"{party} its keys (`cutlayer keys request {party}`) and pin everybody's in the plan (`cutlayer keys pin`)"
        )


def _told(terms: AlignTerms) -> str:
    mode = f"at least {terms.at_least} beside {terms.labels}" if terms.at_least else "all"
    return f"rows that {mode} of {', '.join(terms.holders)} hold, compared by {terms.comparer}"
