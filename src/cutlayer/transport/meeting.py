"""Where two connections of a party find each other, for a link that is new or for one that broke.

A party has one link: a new one takes the place of an older.
"""

import queue
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import msgspec

from cutlayer.errors import ChannelClosed, ChannelError, ChannelTimeout
from cutlayer.plan.limits import Limits
from cutlayer.transport.buffers import BufferPool
from cutlayer.transport.lanes import Lanes, lanes
from cutlayer.transport.link import Link
from cutlayer.transport.opening import Answer, Deadline, Opening, say


class UnwelcomeError(ChannelError):
    """Why a connection is not let in; `passing` if another try may succeed."""

    def __init__(self, reason: str, *, passing: bool = False) -> None:
        super().__init__(reason)
        self.passing = passing


@dataclass(eq=False, slots=True)
class Half:
    """One of two connections: proven to be its party's, waiting for the other one."""

    connection: socket.socket
    opening: Opening
    certificate: bytes
    settled: threading.Event = field(default_factory=threading.Event)
    refusal: UnwelcomeError | None = None

    @property
    def key(self) -> tuple[Opening, bytes]:
        return msgspec.structs.replace(self.opening, direction="to-listener"), self.certificate

    def settle(self, refusal: UnwelcomeError | None = None) -> None:
        self.refusal = refusal
        self.settled.set()


class Meeting:
    """Pairs halves of equal certificate and opening but for the direction, answers both, and makes a link of them.

    A new link is queued for `next_link`; `release` is told of each connection that has become part of a link before
    that. `on_trouble` is what the links tell their troubles to.
    """

    def __init__(
        self,
        party: str,
        limits: Limits,
        *,
        release: Callable[[socket.socket], None],
        on_trouble: Callable[[str], None],
    ) -> None:
        self._party, self._limits, self._pool = party, limits, BufferPool()
        self._release, self._on_trouble = release, on_trouble
        self._waiting: dict[tuple[Opening, bytes], Half] = {}
        self._links: dict[str, tuple[int, Link]] = {}  # by party, the newest
        self._arrived: queue.SimpleQueue[Link | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False

    def join(self, half: Half, deadline: Deadline) -> None:
        """Returns once `half` is part of a link. Raises `UnwelcomeError`."""
        with self._lock:
            if self._closed:
                raise UnwelcomeError("the listener was closed", passing=True)
            other = self._waiting.setdefault(half.key, half)
            if other is not half:
                if other.opening.direction == half.opening.direction:
                    raise UnwelcomeError("it opened the same direction twice")
                del self._waiting[half.key]
                self._settle(half, other)
        with suppress(TimeoutError):
            half.settled.wait(deadline.left_s())
        with self._lock:
            if not half.settled.is_set():
                del self._waiting[half.key]
                raise UnwelcomeError("it opened one direction and never the other", passing=True)
        if half.refusal:
            raise half.refusal

    def next_link(self, timeout_s: float | None) -> Link:
        """The next link that was not replaced meanwhile. Raises `ChannelTimeout`, `ChannelClosed`."""
        while True:
            try:
                link = self._arrived.get(timeout=timeout_s)
            except queue.Empty as error:
                raise ChannelTimeout(f"no party came to {self._party} within {timeout_s:g} s") from error
            if link is None:
                self._arrived.put(None)
                raise ChannelClosed(f"{self._party}'s listener was closed")
            if link.open:
                return link

    def cut_off(self, party: str, reason: str) -> None:
        """Ends the party's link, and tells it why."""
        with self._lock:
            _, link = self._links.pop(party, (0, None))
        if link is not None:
            link.end(f"the link to {party} was cut off: {reason}", reason)

    def close(self) -> None:
        """Refuses who waits, and closes the links that nobody received; the others last as long as they stand."""
        with self._lock:
            self._closed = True
            for half in self._waiting.values():
                half.settle(UnwelcomeError("the listener was closed", passing=True))
            self._waiting.clear()
            while not self._arrived.empty():
                if link := self._arrived.get():
                    link.close()
            self._arrived.put(None)
            for _, link in self._links.values():
                link.forgo()

    def _settle(self, half: Half, other: Half) -> None:
        refusal = None
        try:
            self._welcome(half, other)
        except UnwelcomeError as error:
            refusal = error
        except (OSError, EOFError):
            refusal = UnwelcomeError("it hung up", passing=True)
        half.settle(refusal)
        other.settle(refusal)

    def _welcome(self, half: Half, other: Half) -> None:
        opening = half.opening
        answer = self._answer(opening)
        deadline = Deadline(self._limits.handshake_timeout_s)
        for each in (half, other):
            say(each.connection, answer, deadline)
        incoming, outgoing = (half, other) if opening.direction == "to-listener" else (other, half)
        self._release(half.connection)
        self._release(other.connection)
        self._link(opening, lanes(outgoing.connection, incoming.connection, self._limits, self._pool))

    def _answer(self, opening: Opening) -> Answer:
        """What a party that may have a link hears first. Raises `UnwelcomeError` for one that may not, any more."""
        newest, older = self._links.get(opening.party, (-1, None))
        if older and older.open and opening.incarnation <= newest:
            raise UnwelcomeError("a newer link of this party is already open", passing=True)
        if opening.resumes and not (older and older.life == opening.life and older.fits(opening.received)):
            raise UnwelcomeError("its process is a new one, or it has given up the run")
        return Answer(self._party, received=older.received if older and opening.resumes else 0)

    def _link(self, opening: Opening, pair: Lanes) -> None:
        """The party's link goes on over these lanes, or a new one begins in the place of an older."""
        _, older = self._links.get(opening.party, (-1, None))
        if older and opening.resumes:
            self._links[opening.party] = opening.incarnation, older
            older.attach(pair, opening.received)
            return
        if older:
            older.end(f"{opening.party} opened a newer link in this one's place")
        link = Link(opening.party, opening.life, pair, self._limits)
        link.on_trouble = self._on_trouble
        self._links[opening.party] = opening.incarnation, link
        self._arrived.put(link)
