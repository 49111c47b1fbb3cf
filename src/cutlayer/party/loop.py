"""A party on a network: reader threads fill its inbox, one thread empties it. No wait is without a limit."""

import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from cutlayer.errors import ChannelError, ChannelTimeout, CutlayerError, Interrupted, RunError
from cutlayer.observe.facts import Noticed, Spent
from cutlayer.party.guard import Guard
from cutlayer.party.party import Party
from cutlayer.party.room import Room
from cutlayer.plan.plan import Plan
from cutlayer.protocol.events import Broke, Event, Lost, Tick
from cutlayer.protocol.route import largest_body_bytes
from cutlayer.protocol.wire import Frame
from cutlayer.transport.channel import Channel
from cutlayer.transport.listener import Listener, Refusal


@dataclass(frozen=True, slots=True, eq=False)
class Link:
    """A channel, and the room that its frames have in the inbox."""

    channel: Channel
    room: Room


class StoppedByHandError(RunError):
    """A person pressed Ctrl-C, or sent SIGTERM where the run cannot be taken up again."""


class ShutDownError(Interrupted):
    """SIGTERM, as when a machine goes down: this party leaves, the others wait for it to come back."""


Item = Channel | Event | Noticed | tuple[Link, Frame | Exception]
"""What is put into the inbox: a new channel, an event, a word for the observers, a link's frame or its end."""

TICK_S = 1.0
LONGEST_TICK_S = 2.0
"""What counts of a longer one: while this process stood still, or worked on one step, nobody else was late."""
CLOSE_TIMEOUT_S = 5.0


class Loop:
    """Runs party `name` over its channels, once or as often as the run is taken up again.

    `guard` says who is not let in, or any more.
    """

    def __init__(self, plan: Plan, name: str, guard: Guard | None = None) -> None:
        self._plan, self._name = plan, name
        self._guard = guard or Guard(plan)
        self._limit_bytes = largest_body_bytes(plan)
        self._inbox: SimpleQueue[Item] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._closing = threading.Event()
        self._listener: Listener | None = None

    def listen(self, listener: Listener) -> None:
        """Take the links that a listener brings, from now on until `close`."""
        self._listener = listener
        self._start(lambda: self._accept(listener))

    def run(self, party: Party, channels: Iterable[Channel] = ()) -> None:
        """Drive the party until its run has ended; with links that stand. Raises what ended it, if that is an error."""
        for channel in channels:
            self._inbox.put(channel)
        self._guard.admits = party.session.joinable
        with self._interruptible(lasting=party.lasting):
            try:
                self._drive(party)
            finally:
                for channel in party.links.values():
                    channel.close()
        if isinstance(party.error, StoppedByHandError | ShutDownError):
            raise KeyboardInterrupt from party.error
        if party.error is not None:
            raise party.error

    def close(self) -> None:
        """No more links; waits for the threads."""
        self._closing.set()
        if self._listener is not None:
            self._listener.close()
        deadline = time.monotonic() + CLOSE_TIMEOUT_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    # ------------------------------------------------------------------ what other threads may call

    def post(self, event: Event) -> None:
        """An event for the party."""
        self._inbox.put(event)

    def notice(self, sentence: str) -> None:
        """A word for the observers, told from the party's own thread."""
        self._inbox.put(Noticed(party=self._name, sentence=sentence))

    def refused(self, refusal: Refusal) -> None:
        """A stranger was not let in."""
        self.notice(f"refused a connection from {refusal.address}: {refusal.reason}")

    # ------------------------------------------------------------------ the party's own thread

    @contextmanager
    def _interruptible(self, *, lasting: bool) -> Iterator[None]:
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
            error: CutlayerError = StoppedByHandError(f"{self._name} was stopped by hand")
            if lasting and number == signal.SIGTERM:
                error = ShutDownError(f"{self._name} was shut down")
            self._inbox.put(Broke(error))

        for number in before:
            signal.signal(number, interrupt)
        try:
            yield
        finally:
            restore()

    def _drive(self, party: Party) -> None:
        heard = ticked = time.monotonic()
        while not party.over:
            start = time.perf_counter()
            try:
                item = self._inbox.get(timeout=TICK_S)
            except Empty:
                item = None
            now = time.monotonic()
            if item is not None:
                party.tell(Spent(party=self._name, on="wait", seconds=time.perf_counter() - start))
                begun = party.session.begun
                if self._handle(party, item) or party.session.begun != begun:
                    heard = now
            if now - ticked >= TICK_S and not party.over:
                passed_s = min(now - ticked, LONGEST_TICK_S)
                heard = min(now, heard + (now - ticked) - passed_s)
                party.feed(Tick(now - heard, passed_s))
                ticked = now
                self._cut_off(party)

    def _handle(self, party: Party, item: Item) -> bool:
        """Whether that is life: a frame of a peer at work, or, for who does not conduct, that it reached the conductor.

        In the lobby nothing is, at the conductor: who comes and goes there must not hold up the others.
        """
        if isinstance(item, Noticed):
            party.tell(item)
            return False
        if isinstance(item, Event):
            party.feed(item)
            return False
        if isinstance(item, tuple):
            return self._arrived(party, *item)
        limits = self._plan.terms.limits
        link = Link(item, Room(limits.queued_frames, limits.queued_bytes))
        party.connect(item)
        self._start(lambda: self._read(link))
        return not party.session.conducts

    def _arrived(self, party: Party, link: Link, arrived: Frame | Exception) -> bool:
        peer = link.channel.peer
        current = party.links.get(peer) is link.channel  # or the session dropped it, or it was an earlier party's
        at_work = current and party.session.states.get(peer) == "running"
        if isinstance(arrived, Exception):
            if current:
                party.feed(Lost(peer, str(arrived)))
            return False
        if current:
            party.deliver(peer, arrived)
        link.room.leave(arrived.nbytes)  # also of an old link: whoever reads it must come to its end
        return at_work

    def _cut_off(self, party: Party) -> None:
        """End the links of those who are revoked, at once."""
        for peer in [peer for peer in party.links if self._guard.denies(peer)]:
            link = party.links.pop(peer)
            if self._listener is not None:
                self._listener.cut_off(peer, f"{self._name} has revoked {peer}")
            link.close()
            party.feed(Broke(self._guard.revoked(peer, party.session.start.log[-1].absent)))

    # ------------------------------------------------------------------ threads

    def _start(self, work: Callable[[], None]) -> None:
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        thread = threading.Thread(target=work, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _read(self, link: Link) -> None:
        """Frames of one link go into the inbox, so many at a time: a full inbox holds the peer."""
        try:
            while not self._closing.is_set():
                if link.room.wait(TICK_S):
                    frame = link.channel.receive(self._limit_bytes)
                    link.room.enter(frame.nbytes)
                    self._inbox.put((link, frame))
                    del frame  # not to be kept while the next one is waited for
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
