"""A party on a network: reader threads fill its inbox, one thread empties it. No wait is without a limit."""

import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from cutlayer.errors import ChannelError, ChannelTimeout, RunError
from cutlayer.observe.facts import Noticed, Spent
from cutlayer.party.party import Party
from cutlayer.protocol.events import Broke, Lost, Tick
from cutlayer.protocol.route import largest_body_bytes
from cutlayer.protocol.wire import Frame
from cutlayer.transport.channel import Channel
from cutlayer.transport.listener import Listener, Refusal


@dataclass(frozen=True, slots=True, eq=False)
class Link:
    """A channel, and how many more of its frames may lie in the inbox."""

    channel: Channel
    room: threading.Semaphore


class StoppedByHandError(RunError):
    """A person pressed Ctrl-C, or sent SIGTERM."""


Item = Channel | Noticed | StoppedByHandError | tuple[Link, Frame | Exception]
"""What is put into the inbox: a new channel, a word for the observers, an end by hand, a link's frame or its end."""

TICK_S = 1.0
CLOSE_TIMEOUT_S = 5.0


class Loop:
    """Runs one party over its channels until the run has ended. `run` raises what ended it, if that is an error."""

    def __init__(self, party: Party) -> None:
        self._party = party
        self._limit_bytes = largest_body_bytes(party.plan)
        self._inbox: SimpleQueue[Item] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._closing = threading.Event()

    def run(self, channels: Iterable[Channel] = (), listener: Listener | None = None) -> None:
        """Drive the party with links that stand, and those that a listener will bring."""
        for channel in channels:
            self._inbox.put(channel)
        if listener is not None:
            self._start(lambda: self._accept(listener))
        with self._interruptible():
            try:
                self._drive()
            finally:
                self._close(listener)
        if isinstance(self._party.error, StoppedByHandError):
            raise KeyboardInterrupt from self._party.error
        if self._party.error is not None:
            raise self._party.error

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """The first Ctrl-C (or SIGTERM) lets the step end, so that peers can be told why; the second is as ever."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def restore() -> None:
            for number, handler in before.items():
                signal.signal(number, handler)

        def interrupt(number: int, frame: object) -> None:
            restore()
            self._inbox.put(StoppedByHandError(f"{self._party.name} was stopped by hand"))

        for number in before:
            signal.signal(number, interrupt)
        try:
            yield
        finally:
            restore()

    def refused(self, refusal: Refusal) -> None:
        """A stranger was not let in: tell the observers, from the party's own thread."""
        sentence = f"refused a connection from {refusal.address}: {refusal.reason}"
        self._inbox.put(Noticed(party=self._party.name, sentence=sentence))

    def _drive(self) -> None:
        heard = time.monotonic()
        while not self._party.over:
            start = time.perf_counter()
            try:
                item = self._inbox.get(timeout=TICK_S)
            except Empty:
                self._party.feed(Tick(time.monotonic() - heard))
                continue
            self._party.tell(Spent(party=self._party.name, on="wait", seconds=time.perf_counter() - start))
            if isinstance(item, Noticed):
                self._party.tell(item)
            elif isinstance(item, StoppedByHandError):
                self._party.feed(Broke(item))
            else:
                self._handle(item)
                heard = time.monotonic()

    def _handle(self, item: Channel | tuple[Link, Frame | Exception]) -> None:
        if not isinstance(item, tuple):
            link = Link(item, threading.Semaphore(2 * self._party.plan.terms.limits.live_tickets))
            self._party.connect(item)
            self._start(lambda: self._read(link))
            return
        link, arrived = item
        peer = link.channel.peer
        if self._party.links.get(peer) is not link.channel:
            return  # a newer link has taken its place, or the session dropped it
        if isinstance(arrived, Exception):
            self._party.feed(Lost(peer, str(arrived)))
        else:
            self._party.deliver(peer, arrived)
            link.room.release()

    def _start(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _read(self, link: Link) -> None:
        """Frames of one link go into the inbox, so many at a time: a full inbox holds the peer."""
        try:
            while not self._closing.is_set():
                if link.room.acquire(timeout=TICK_S):
                    self._inbox.put((link, link.channel.receive(self._limit_bytes)))
        except Exception as error:  # whatever it was, the party must hear that nothing more will come
            self._inbox.put((link, error))

    def _accept(self, listener: Listener) -> None:
        while not self._closing.is_set():
            try:
                self._inbox.put(listener.accept(TICK_S))
            except ChannelTimeout:
                continue
            except ChannelError:
                return

    def _close(self, listener: Listener | None) -> None:
        self._closing.set()
        if listener is not None:
            listener.close()
        for channel in self._party.links.values():
            channel.close()
        deadline = time.monotonic() + CLOSE_TIMEOUT_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
