"""Drives one party's seat of an alignment over its links: threads that read and write, one that computes."""

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue

from cutlayer.errors import ChannelError, ChannelTimeout, CutlayerError
from cutlayer.observe.facts import Noticed, Observer
from cutlayer.party.alignment.star import Seat
from cutlayer.protocol.wire import Frame
from cutlayer.transport.channel import Channel
from cutlayer.transport.listener import Listener, Refusal

FRAME_BYTES = 2**20
"""The largest body taken: a part of a list, sealed, is half of it."""
FRAMES_AHEAD = 64
CLOSE_TIMEOUT_S = 5.0
GRACE_S = 1.0
"""A peer that hung up has perhaps said why: that is read first."""
POLL_S = 0.2

Progress = Callable[[int, int], None]
"""Told how many points this party has masked, of how many."""


class _Link:
    """A channel with a thread that reads and one that writes, so that nobody waits for arithmetic to send."""

    def __init__(self, channel: Channel, arrived: Callable[["_Link", Frame | CutlayerError], None]) -> None:
        self.channel = channel
        self.room = threading.Semaphore(FRAMES_AHEAD)
        self._arrived, self._closing = arrived, threading.Event()
        self._outbox: SimpleQueue[Frame | None] = SimpleQueue()
        self._writer = threading.Thread(target=self._write, daemon=True, name=f"cutlayer-to-{channel.peer}")
        self._reader = threading.Thread(target=self._read, daemon=True, name=f"cutlayer-from-{channel.peer}")
        self._writer.start()
        self._reader.start()

    def send(self, frame: Frame) -> None:
        self._outbox.put(frame)

    def close(self, deadline: float) -> None:
        """Let what was said leave, then end the link and both threads."""
        self._closing.set()
        self._outbox.put(None)
        self._writer.join(max(0.0, deadline - time.monotonic()))
        self.channel.close()
        for thread in (self._writer, self._reader):
            thread.join(CLOSE_TIMEOUT_S)

    def _write(self) -> None:
        try:
            while (frame := self._outbox.get()) is not None:
                self.channel.send(frame)
        except ChannelError as error:
            if isinstance(error, ChannelTimeout) or not self._closing.wait(GRACE_S):
                self._arrived(self, error)

    def _read(self) -> None:
        try:
            while not self._closing.is_set():
                if self.room.acquire(timeout=POLL_S):
                    self._arrived(self, self.channel.receive(FRAME_BYTES))
        except ChannelError as error:
            self._arrived(self, error)


class Desk:
    """Drives a seat over its links. No wait is without a limit."""

    def __init__(self, seat: Seat, *, join_s: float, answer_s: float, progress: Progress) -> None:
        self._seat, self._join_s, self._answer_s, self._progress = seat, join_s, answer_s, progress
        self._links: dict[str, _Link] = {}
        self._inbox: SimpleQueue[tuple[_Link, Frame | CutlayerError]] = SimpleQueue()
        self._noticed: deque[str] = deque()

    def say(self, sentence: str) -> None:
        """A word for the observer, from any thread."""
        self._noticed.append(sentence)

    def refused(self, refusal: Refusal) -> None:
        """A stranger was not let in."""
        self.say(f"refused a connection from {refusal.address}: {refusal.reason}")

    def add(self, channel: Channel) -> None:
        """A link to a peer; a newer one takes the place of an older one."""
        if (old := self._links.get(channel.peer)) is not None:
            old.close(time.monotonic())  # or a peer that comes again and again would leave threads and sockets here
            self._seat.forget(channel.peer)
        self._links[channel.peer] = _Link(channel, lambda link, arrived: self._inbox.put((link, arrived)))

    def run(self, listener: Listener | None, observer: Observer) -> None:
        """Until it is over. Raises `CutlayerError`; the peers are told why."""
        heard = time.monotonic()
        try:
            while not self._seat.over:
                heard = self._turn(listener, heard)
                while self._noticed:
                    observer(Noticed(party=self._seat.party, sentence=self._noticed.popleft()))
            self._send()
        except CutlayerError as error:
            self._part(error.told)
            raise
        except KeyboardInterrupt:
            self._part(f"{self._seat.party} was stopped by hand")
            raise
        except BaseException:
            self._part(f"{self._seat.party} has a fault of its own")
            raise
        finally:
            if listener is not None:
                listener.close()
            deadline = time.monotonic() + CLOSE_TIMEOUT_S
            for link in self._links.values():
                link.close(deadline)

    def _turn(self, listener: Listener | None, heard: float) -> float:
        """Send, then hear or work or wait a little; returns when something was last heard or done."""
        seat = self._seat
        self._send()
        if listener is not None and not seat.run:
            with suppress(ChannelTimeout):
                self.add(listener.accept(0.0 if self._inbox.qsize() else POLL_S / 4))
        if self._hear(0.0 if seat.busy else POLL_S):
            return time.monotonic()
        if seat.busy:
            seat.work()
            if seat.aligner is not None:
                self._progress(seat.aligner.masked, seat.aligner.to_mask)
            return time.monotonic()
        limit_s = self._answer_s if seat.run else self._join_s
        if time.monotonic() - heard > limit_s and not seat.over:
            raise ChannelTimeout(
                f"{seat.party} waited {limit_s:g} s for {seat.awaited()}: see what became of it, and start again"
            )
        return heard

    def _send(self) -> None:
        while self._seat.letters:
            peer, frame = self._seat.letters.popleft()
            self._links[peer].send(frame)

    def _hear(self, timeout_s: float) -> bool:
        """Whether something had come."""
        try:
            link, arrived = self._inbox.get(timeout=timeout_s) if timeout_s else self._inbox.get_nowait()
        except Empty:
            return False
        peer = link.channel.peer
        if self._links.get(peer) is not link:
            return True
        if isinstance(arrived, CutlayerError):
            if not self._seat.forget(peer):
                raise arrived
            self._links.pop(peer).close(time.monotonic())
            self.say(f"{peer} left before all were there: {arrived}")
            return True
        link.room.release()
        self._seat.feed(peer, arrived)
        return True

    def _part(self, reason: str) -> None:
        for peer, frame in self._seat.farewell(reason):
            if peer in self._links:
                self._links[peer].send(frame)
