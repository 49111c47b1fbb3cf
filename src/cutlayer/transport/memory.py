"""The link between two parties of one process. It copies each body once, as the network does."""

import threading
from collections import deque
from collections.abc import Callable
from functools import partial

from cutlayer.errors import ChannelClosed, ChannelTimeout, FrameRefused
from cutlayer.plan.limits import Limits
from cutlayer.protocol.wire import Frame, read_prelude
from cutlayer.transport.buffers import BufferPool
from cutlayer.transport.channel import NO_BODY, PING
from cutlayer.transport.outbox import RESERVE

QUEUE_BYTES = 256 * 2**20


def pair(
    a: str,
    b: str,
    limits: Limits,
    *,
    queue_bytes: int | None = QUEUE_BYTES,
    heartbeats: bool = True,
    pool: BufferPool | None = None,
    arrived: Callable[[str, str], None] | None = None,
) -> tuple["MemoryChannel", "MemoryChannel"]:
    """Two connected channels: the first is `a`'s (its peer is `b`), the second is `b`'s.

    `arrived(party, peer)` is told of each frame that lies ready for a party, by the thread that sent it.

    A sender waits while more than `queue_bytes` lie unreceived at the other end (one frame always fits); None, for a
    single-threaded caller, means that it never waits. Every frame leaves at once, so none goes ahead of another. With
    `heartbeats=False` an idle end counts as a frozen one.
    """
    pool = pool or BufferPool()
    to_b = _Pipe(queue_bytes, arrived and partial(arrived, b, a))
    to_a = _Pipe(queue_bytes, arrived and partial(arrived, a, b))
    return (
        MemoryChannel(b, to_b, to_a, limits, pool, heartbeats=heartbeats),
        MemoryChannel(a, to_a, to_b, limits, pool, heartbeats=heartbeats),
    )


class MemoryChannel:
    """One end of a `pair`. See `channel.Channel` for what it promises."""

    def __init__(
        self, peer: str, outgoing: "_Pipe", incoming: "_Pipe", limits: Limits, pool: BufferPool, *, heartbeats: bool
    ) -> None:
        self.peer = peer
        self.sent_bytes = 0
        self.received_bytes = 0
        self._outgoing, self._incoming, self._pool = outgoing, incoming, pool
        self._limits = limits
        self._silence_s = None if heartbeats else limits.silence_timeout_s
        self._sending = threading.Lock()
        self._refusal = ""
        self._closed = False

    def send(self, frame: Frame, *, wait: bool = True, urgent: bool = False) -> int:
        """Copies the frame and hands it over, which is all that `wait` could wait for.

        Raises `ChannelTimeout`, `ChannelClosed`.
        """
        with self._sending:
            if self._closed:
                raise ChannelClosed(f"the link to {self.peer} was closed at this end")
            if not self._outgoing.wait_for_room(frame.nbytes, self._limits.send_timeout_s, urgent=urgent):
                raise ChannelTimeout(
                    f"{self.peer} took nothing for {self._limits.send_timeout_s:g} s, so a frame of "
                    f"{frame.nbytes:,} bytes could not be sent"
                )
            if not self._outgoing.put(self._copy(frame), urgent=urgent):
                raise ChannelClosed(self._why_gone())
            self.sent_bytes += frame.nbytes
            return frame.nbytes

    def receive(self, limit_bytes: int) -> Frame:
        """The next frame. Raises `ChannelTimeout`, `ChannelClosed`, `FrameRefused`."""
        while True:
            if self._closed:
                raise ChannelClosed(self._why_gone())
            if not self._incoming.wait_for_frame(self._silence_s):
                raise ChannelTimeout(f"{self.peer} was silent for {self._limits.silence_timeout_s:g} s")
            if (frame := self.poll(limit_bytes)) is not None:
                return frame

    def poll(self, limit_bytes: int) -> Frame | None:
        """The next frame if one is there. Raises `ChannelClosed`, `FrameRefused`."""
        while True:
            frame, ended = self._incoming.take()
            if frame is None:
                if ended:
                    raise ChannelClosed(self._refusal or self._why_gone())
                return None
            if frame.header == PING.header and not frame.body_bytes:
                continue
            self._check(frame, limit_bytes)
            self.received_bytes += frame.nbytes
            return frame

    def close(self) -> None:
        """Ends the link at both ends. Idempotent."""
        self._closed = True
        self._outgoing.end()
        self._incoming.end(discard=True)

    def _check(self, frame: Frame, limit_bytes: int) -> None:
        try:
            read_prelude(frame.prelude(), header_limit=self._limits.header_bytes, body_limit=limit_bytes)
        except FrameRefused as refusal:
            self._refusal = str(refusal)
            self._incoming.end(discard=True)
            raise

    def _copy(self, frame: Frame) -> Frame:
        if not frame.body_bytes:
            return Frame(frame.header, (NO_BODY,))
        body, at = self._pool.take(frame.body_bytes), 0
        for part in frame.parts:
            if part.nbytes:
                body[at : at + part.nbytes] = part.cast("B")
                at += part.nbytes
        return Frame(frame.header, (body,))

    def _why_gone(self) -> str:
        return f"the link to {self.peer} was closed at this end" if self._closed else f"{self.peer} is gone"


class _Pipe:
    """Frames on their way in one direction."""

    def __init__(self, room_bytes: int | None, arrived: Callable[[], None] | None = None) -> None:
        self._room_bytes, self._arrived = room_bytes, arrived
        self._frames: deque[tuple[Frame, bool]] = deque()  # each with whether it is urgent
        self._queued_bytes = self._urgent = 0
        self._changed = threading.Condition()
        self._ended = False

    def wait_for_room(self, nbytes: int, timeout_s: float, *, urgent: bool) -> bool:
        """Whether the frame may be put (or the pipe has ended) before the time is over."""
        with self._changed:
            return self._changed.wait_for(lambda: self._has_room(nbytes, urgent), timeout_s)

    def _has_room(self, nbytes: int, urgent: bool) -> bool:
        bound = self._room_bytes
        if self._ended or bound is None or not self._frames or (urgent and not self._urgent):
            return True
        return self._queued_bytes + nbytes <= (bound + bound // RESERVE if urgent else bound)

    def put(self, frame: Frame, *, urgent: bool) -> bool:
        """Whether the frame was taken: not after the end."""
        with self._changed:
            if self._ended:
                return False
            self._frames.append((frame, urgent))
            self._queued_bytes += frame.nbytes
            self._urgent += urgent
            self._changed.notify_all()
        if self._arrived is not None:
            self._arrived()
        return True

    def wait_for_frame(self, timeout_s: float | None) -> bool:
        """Whether there is a frame, or an end, before the time is over."""
        with self._changed:
            return self._changed.wait_for(lambda: bool(self._frames) or self._ended, timeout_s)

    def take(self) -> tuple[Frame | None, bool]:
        """The next frame, if there is one, and whether the pipe has ended."""
        with self._changed:
            if not self._frames:
                return None, self._ended
            frame, urgent = self._frames.popleft()
            self._queued_bytes -= frame.nbytes
            self._urgent -= urgent
            self._changed.notify_all()
            return frame, self._ended

    def end(self, *, discard: bool = False) -> None:
        """No frame comes after this one; with `discard`, those still here are dropped too."""
        with self._changed:
            self._ended = True
            if discard:
                self._frames.clear()
                self._queued_bytes = self._urgent = 0
            self._changed.notify_all()
