"""The two one-way connections of a link, so that nobody reads and writes one TLS object at once.

`listener` and `dialler` open them; `link` uses them, one pair after another. A lane knows bytes and frames, and nothing
of what was lost: it fails, and its link takes another.
"""

import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from cutlayer.plan.limits import Limits
from cutlayer.protocol.wire import PRELUDE_BYTES, Frame, read_numbered
from cutlayer.transport.buffers import BufferPool
from cutlayer.transport.channel import NO_BODY
from cutlayer.transport.opening import wake

SMALL_BYTES = 128 * 1024  # up to here one copy costs less than a second write, which wakes the peer once more
WRITE_BYTES = 256 * 1024
GATHER_BYTES = 4096


class SendingLane:
    """A connection that this end writes, one thread at a time."""

    def __init__(self, connection: socket.socket, limits: Limits) -> None:
        self.wrote_at = time.monotonic()
        self._connection, self._timeout_s = connection, limits.send_timeout_s
        self._writing = threading.Lock()
        self._writable = select.poll()
        self._writable.register(connection, select.POLLOUT)
        connection.settimeout(self._timeout_s)

    @property
    def ready(self) -> bool:
        """Whether the kernel has room for a small frame, so that a write would not wait."""
        return bool(self._writable.poll(0))

    def write(self, frame: Frame, number: int, acknowledged: int) -> None:
        """Hands the frame to the kernel. Raises `OSError`, `TimeoutError` after `limits.send_timeout_s` among them."""
        with self._writing:
            if frame.nbytes <= SMALL_BYTES:
                prelude = frame.prelude(number, acknowledged)
                self._connection.sendall(b"".join((prelude, frame.header, *frame.parts)))
            else:
                self._write_large(frame, number, acknowledged)
            self.wrote_at = time.monotonic()

    def part(self, frame: Frame, timeout_s: float) -> None:
        """A last word, if the connection takes it soon; then the end."""
        if self._writing.acquire(timeout=timeout_s):
            with suppress(OSError, ValueError):
                self._connection.settimeout(timeout_s)
                self._connection.sendall(frame.prelude() + frame.header)
            self._writing.release()
        self.close()

    def close(self) -> None:
        """Ends the connection at both ends, and waits until whoever writes here has woken up. Idempotent."""
        wake(self._connection)
        with self._writing:
            self._connection.close()

    def _write_large(self, frame: Frame, number: int, acknowledged: int) -> None:
        deadline = time.monotonic() + self._timeout_s
        for piece in _pieces(frame, number, acknowledged):
            self._connection.settimeout(max(0.001, deadline - time.monotonic()))
            self._connection.sendall(piece)
            self.wrote_at = time.monotonic()
        self._connection.settimeout(self._timeout_s)


def _pieces(frame: Frame, number: int, acknowledged: int) -> Iterator[bytes | memoryview]:
    """What to write in one call each. Nothing large is copied; small parts leave together."""
    gathered: list[bytes | memoryview] = [frame.prelude(number, acknowledged), frame.header]
    for part in frame.parts:
        if part.nbytes <= GATHER_BYTES:
            gathered.append(part)
            continue
        if gathered:
            yield b"".join(gathered)
            gathered = []
        view = part.cast("B")
        for start in range(0, view.nbytes, WRITE_BYTES):
            yield view[start : start + WRITE_BYTES]
    if gathered:
        yield b"".join(gathered)


Arrived = tuple[Frame, int, int]
"""A frame, its number, and how many of ours its sender has received."""


class ReceivingLane:
    """A connection that this end reads: ahead into a small buffer for headers, and straight into a body's own."""

    def __init__(self, connection: socket.socket, limits: Limits, pool: BufferPool) -> None:
        self.inside = False
        """Whether a frame has begun to arrive, and not ended."""
        self._connection, self._pool, self._header_limit = connection, pool, limits.header_bytes
        self._ahead = memoryview(bytearray(PRELUDE_BYTES + limits.header_bytes))
        self._start = self._end = 0
        self._reading = threading.Lock()
        connection.settimeout(limits.silence_timeout_s)

    def read(self, limit_bytes: int) -> Arrived:
        """The next frame. Raises `OSError`, `EOFError`, `FrameRefused`; `TimeoutError` after silence."""
        with self._reading:
            self.inside = self._end > self._start
            prelude = self._read_ahead(PRELUDE_BYTES)
            header_bytes, body_bytes, number, acknowledged = read_numbered(prelude, self._header_limit, limit_bytes)
            header = bytes(self._read_ahead(header_bytes))
            body = self._read_body(body_bytes) if body_bytes else NO_BODY
            self.inside = False
            return Frame(header, (body,)), number, acknowledged

    def wake(self) -> None:
        """Ends the connection. What has arrived already can still be read."""
        wake(self._connection)

    def close(self) -> None:
        """Ends the connection at both ends, and waits until whoever reads here has woken up. Idempotent."""
        wake(self._connection)
        with self._reading:
            self._connection.close()

    def _read_ahead(self, nbytes: int) -> memoryview:
        """The next `nbytes` bytes, valid until the next read; whatever came with them is kept."""
        if self._end - self._start < nbytes:
            left = self._end - self._start
            self._ahead[:left] = self._ahead[self._start : self._end]
            self._start, self._end = 0, left
            while self._end < nbytes:
                self._end += self._read_into(self._ahead[self._end :])
        taken = self._ahead[self._start : self._start + nbytes]
        self._start += nbytes
        return taken

    def _read_body(self, nbytes: int) -> memoryview:
        body = self._pool.take(nbytes)
        at = min(nbytes, self._end - self._start)
        body[:at] = self._ahead[self._start : self._start + at]
        self._start += at
        while at < nbytes:
            at += self._read_into(body[at:])
        return body

    def _read_into(self, view: memoryview) -> int:
        if not (nbytes := self._connection.recv_into(view)):
            raise EOFError
        self.inside = True
        return nbytes


class Lanes(NamedTuple):
    """A pair of them, as the dialler and the listener open it."""

    outgoing: SendingLane
    incoming: ReceivingLane

    def close(self) -> None:
        """Ends both."""
        self.outgoing.close()
        self.incoming.close()


def lanes(outgoing: socket.socket, incoming: socket.socket, limits: Limits, pool: BufferPool) -> Lanes:
    """The lanes of two connections, whose openings are over."""
    return Lanes(SendingLane(outgoing, limits), ReceivingLane(incoming, limits, pool))
