"""A party on a network: reader threads fill its inbox, one thread empties it. No wait is without a limit."""

import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from queue import Empty, SimpleQueue

from cutlayer.errors import ChannelError, RunError
from cutlayer.observe.facts import Noticed, Spent
from cutlayer.party.party import Party
from cutlayer.protocol.events import Broke, Lost, Tick
from cutlayer.protocol.route import largest_body_bytes
from cutlayer.protocol.wire import Frame
from cutlayer.transport.channel import Channel
from cutlayer.transport.listener import Listener, Refusal

Item = Channel | Lost | Noticed | tuple[str, Frame]
"""What threads put into the inbox: a new link, a lost one, a word for the observers, a frame from a peer."""

TICK_S = 1.0
CLOSE_TIMEOUT_S = 5.0


class Loop:
    """Runs one party over its channels until the run has ended. `run` raises what ended it, if that is an error."""

    def __init__(self, party: Party) -> None:
        self._party = party
        self._limit_bytes = largest_body_bytes(party.plan)
        self._inbox: SimpleQueue[Item] = SimpleQueue()
        self._room: dict[str, threading.Semaphore] = {}
        self._threads: list[threading.Thread] = []
        self._closing = threading.Event()

    def run(self, channels: Iterable[Channel] = (), listener: Listener | None = None) -> None:
        """Drive the party with links that stand, and those that a listener will bring."""
        for channel in channels:
            self._inbox.put(channel)
        if listener is not None:
            self._start(self._accept, listener)
        try:
            self._drive()
        except KeyboardInterrupt:
            self._party.feed(Broke(RunError(f"{self._party.name} was stopped by hand (Ctrl-C)")))
            raise
        finally:
            self._close(listener)
        if self._party.error is not None:
            raise self._party.error

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
            self._handle(item)
            heard = time.monotonic()

    def _handle(self, item: Item) -> None:
        if isinstance(item, Lost):
            self._party.feed(item)
        elif isinstance(item, Noticed):
            self._party.tell(item)
        elif isinstance(item, tuple):
            peer, frame = item
            self._party.deliver(peer, frame)
            self._room[peer].release()
        else:
            self._room[item.peer] = threading.Semaphore(2 * self._party.plan.terms.limits.live_tickets)
            self._party.connect(item)
            self._start(self._read, item, self._room[item.peer])

    def _start(self, work: object, *args: object) -> None:
        thread = threading.Thread(target=work, args=args, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _read(self, channel: Channel, room: threading.Semaphore) -> None:
        """Frames of one link go into the inbox, so many at a time: a full inbox holds the peer."""
        try:
            while not self._closing.is_set():
                if room.acquire(timeout=TICK_S):
                    self._inbox.put((channel.peer, channel.receive(self._limit_bytes)))
        except ChannelError as error:
            if self._party.links.get(channel.peer) is channel:
                self._inbox.put(Lost(channel.peer, str(error)))

    def _accept(self, listener: Listener) -> None:
        while not self._closing.is_set():
            with suppress(ChannelError):
                self._inbox.put(listener.accept(TICK_S))

    def _close(self, listener: Listener | None) -> None:
        self._closing.set()
        if listener is not None:
            listener.close()
        for channel in self._party.links.values():
            channel.close()
        deadline = time.monotonic() + CLOSE_TIMEOUT_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
