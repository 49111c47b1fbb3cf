"""Where the two connections of a link find each other, and where a party's newer link replaces its older one."""

import queue
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from cutlayer.errors import ChannelClosed, ChannelError, ChannelTimeout
from cutlayer.plan.limits import Limits
from cutlayer.transport.buffers import BufferPool
from cutlayer.transport.lanes import LanesChannel
from cutlayer.transport.opening import Answer, Deadline, Opening, say


class UnwelcomeError(ChannelError):
    """Why a connection is not let in; `passing` if another try may succeed."""

    def __init__(self, reason: str, *, passing: bool = False) -> None:
        super().__init__(reason)
        self.passing = passing


@dataclass(eq=False, slots=True)
class Half:
    """One of a link's two connections: proven to be its party's, waiting for the other one."""

    connection: socket.socket
    opening: Opening
    certificate: bytes
    settled: threading.Event = field(default_factory=threading.Event)
    refusal: UnwelcomeError | None = None

    @property
    def key(self) -> tuple[str, bytes, int]:
        return self.opening.party, self.certificate, self.opening.incarnation

    def settle(self, refusal: UnwelcomeError | None = None) -> None:
        self.refusal = refusal
        self.settled.set()


class Meeting:
    """Pairs halves of equal party, certificate and incarnation, answers both, and queues the link for `next_link`.

    `release` is told of each connection that has become part of a link, before anybody can receive that link.
    """

    def __init__(self, party: str, limits: Limits, pool: BufferPool, release: Callable[[socket.socket], None]) -> None:
        self._party, self._limits, self._pool, self._release = party, limits, pool, release
        self._waiting: dict[tuple[str, bytes, int], Half] = {}
        self._links: dict[str, tuple[int, LanesChannel]] = {}  # by party, the newest
        self._arrived: queue.SimpleQueue[LanesChannel | None] = queue.SimpleQueue()
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

    def next_link(self, timeout_s: float | None) -> LanesChannel:
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

    def close(self) -> None:
        """Refuses who waits, and closes the links that nobody received."""
        with self._lock:
            self._closed = True
            for half in self._waiting.values():
                half.settle(UnwelcomeError("the listener was closed", passing=True))
            self._waiting.clear()
            while not self._arrived.empty():
                if link := self._arrived.get():
                    link.close()
            self._arrived.put(None)

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
        party, _, incarnation = half.key
        newest, older = self._links.get(party, (-1, None))
        if older and older.open and incarnation <= newest:
            raise UnwelcomeError("a newer link of this party is already open", passing=True)
        deadline = Deadline(self._limits.handshake_timeout_s)
        for each in (half, other):
            say(each.connection, Answer(self._party), deadline)
        incoming, outgoing = (half, other) if half.opening.direction == "to-listener" else (other, half)
        link = LanesChannel(party, outgoing.connection, incoming.connection, self._limits, self._pool)
        if older:
            older.end(f"{party} opened a newer link in this one's place")
        self._links[party] = incarnation, link
        self._release(half.connection)
        self._release(other.connection)
        self._arrived.put(link)
