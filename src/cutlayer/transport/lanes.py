"""The link between two processes: two one-way connections, so that nobody reads and writes one TLS object at once.

`listener` and `dialler` make such a link; from then on each connection carries frames in one direction only.
"""

import socket
import threading
import time
from collections.abc import Iterator

from cutlayer.errors import ChannelClosed, ChannelError, ChannelTimeout, FrameRefused
from cutlayer.plan.limits import Limits
from cutlayer.protocol.wire import PRELUDE_BYTES, Frame, read_prelude
from cutlayer.transport.buffers import BufferPool
from cutlayer.transport.channel import NO_BODY, PING
from cutlayer.transport.opening import wake

SMALL_BYTES = 128 * 1024  # up to here one copy costs less than a second write, which wakes the peer once more
WRITE_BYTES = 256 * 1024
GATHER_BYTES = 4096


class LanesChannel:
    """One end of a link over two connections. See `channel.Channel` for what it promises."""

    def __init__(
        self, peer: str, outgoing: socket.socket, incoming: socket.socket, limits: Limits, pool: BufferPool
    ) -> None:
        self.peer = peer
        self.open = True
        self._outgoing = _SendingLane(outgoing, peer, limits)
        self._incoming = _ReceivingLane(incoming, peer, limits, pool)

    @property
    def sent_bytes(self) -> int:
        return self._outgoing.sent_bytes

    @property
    def received_bytes(self) -> int:
        return self._incoming.received_bytes

    def send(self, frame: Frame) -> int:
        """Hands the frame to the kernel. Raises `ChannelTimeout`, `ChannelClosed`."""
        return self._outgoing.send(frame)

    def receive(self, limit_bytes: int) -> Frame:
        """The next frame. Raises `ChannelTimeout`, `ChannelClosed`, `FrameRefused`."""
        return self._incoming.receive(limit_bytes)

    def close(self) -> None:
        """Ends the link at both ends. Idempotent."""
        self.end(f"the link to {self.peer} was closed at this end")

    def end(self, reason: str) -> None:
        """`close`, with another sentence for whoever still waits here."""
        self.open = False
        self._outgoing.end(reason)
        self._incoming.end(reason)


class _SendingLane:
    """The connection that this end writes. A thread writes a heartbeat when nothing else was sent for a while."""

    def __init__(self, connection: socket.socket, peer: str, limits: Limits) -> None:
        self.sent_bytes = 0
        self._connection, self._peer = connection, peer
        self._timeout_s, self._heartbeat_s = limits.send_timeout_s, limits.heartbeat_s
        self._writing = threading.Lock()
        self._broken = ""
        self._ended = threading.Event()
        self._wrote_at = time.monotonic()
        connection.settimeout(self._timeout_s)
        self._heart = threading.Thread(target=self._beat, daemon=True, name=f"cutlayer-heartbeat-{peer}")
        self._heart.start()

    def send(self, frame: Frame) -> int:
        deadline = time.monotonic() + self._timeout_s
        if not self._writing.acquire(timeout=self._timeout_s):
            raise ChannelTimeout(self._stuck())
        try:
            nbytes = self._write(frame, deadline)
            self.sent_bytes += nbytes
            return nbytes
        finally:
            self._writing.release()

    def end(self, reason: str) -> None:
        self._broken = self._broken or reason
        self._ended.set()
        wake(self._connection)
        if self._heart is not threading.current_thread():
            self._heart.join()
        with self._writing:  # a woken writer has left the connection before it is closed
            self._connection.close()

    def _write(self, frame: Frame, deadline: float) -> int:
        if self._broken:
            raise ChannelClosed(self._broken)
        nbytes = frame.nbytes
        try:
            if nbytes <= SMALL_BYTES:
                self._connection.sendall(b"".join((frame.prelude(), frame.header, *frame.parts)))
            else:
                self._write_large(frame, deadline)
        except TimeoutError as error:
            self._broken = self._broken or self._stuck()
            wake(self._connection)
            raise ChannelTimeout(self._stuck()) from error
        except (OSError, ValueError) as error:
            self._broken = self._broken or f"{self._peer} is gone"
            raise ChannelClosed(self._broken) from error
        except BaseException:  # an interrupt, say: half a frame may have left, so nothing may follow it
            self._broken = self._broken or f"sending to {self._peer} was interrupted in the middle of a frame"
            wake(self._connection)
            raise
        self._wrote_at = time.monotonic()
        return nbytes

    def _write_large(self, frame: Frame, deadline: float) -> None:
        for piece in _pieces(frame):
            self._connection.settimeout(max(0.001, deadline - time.monotonic()))
            self._connection.sendall(piece)
        self._connection.settimeout(self._timeout_s)

    def _beat(self) -> None:
        while not self._ended.wait(max(0.0, self._wrote_at + self._heartbeat_s - time.monotonic())):
            with self._writing:
                now = time.monotonic()
                if now - self._wrote_at < self._heartbeat_s:
                    continue
                try:
                    self._write(PING, now + self._timeout_s)
                except ChannelError:
                    return  # whoever sends or receives next is told

    def _stuck(self) -> str:
        return f"{self._peer} took no whole frame for {self._timeout_s:g} s"


def _pieces(frame: Frame) -> Iterator[bytes | memoryview]:
    """What to write in one call each. Nothing large is copied; small parts leave together."""
    gathered: list[bytes | memoryview] = [frame.prelude(), frame.header]
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


class _ReceivingLane:
    """The connection that this end reads: ahead into a small buffer for headers, and straight into a body's own."""

    def __init__(self, connection: socket.socket, peer: str, limits: Limits, pool: BufferPool) -> None:
        self.received_bytes = 0
        self._connection, self._peer, self._pool = connection, peer, pool
        self._header_limit = limits.header_bytes
        self._silence_s = limits.silence_timeout_s
        self._ahead = memoryview(bytearray(PRELUDE_BYTES + limits.header_bytes))
        self._start = self._end = 0
        self._inside = False
        self._reading = threading.Lock()
        self._broken = ""
        connection.settimeout(self._silence_s)

    def receive(self, limit_bytes: int) -> Frame:
        with self._reading:
            if self._broken:
                raise ChannelClosed(self._broken)
            try:
                while (frame := self._next_frame(limit_bytes)) is None:
                    pass
            except (FrameRefused, OSError, EOFError, ValueError) as error:
                raise self._failure(error) from error
            except BaseException:  # an interrupt, say: what was read of a frame is lost
                self._broken = self._broken or f"receiving from {self._peer} was interrupted"
                wake(self._connection)
                raise
            return frame

    def end(self, reason: str) -> None:
        self._broken = self._broken or reason
        wake(self._connection)
        with self._reading:  # a woken reader has left the connection before it is closed
            self._connection.close()

    def _failure(self, error: Exception) -> ChannelError:
        if self._broken:
            return ChannelClosed(self._broken)
        where = " in the middle of a frame" if self._inside else ""
        failure: ChannelError
        if isinstance(error, FrameRefused):
            failure = error
        elif isinstance(error, TimeoutError):
            failure = ChannelTimeout(f"{self._peer} was silent for {self._silence_s:g} s{where}")
        else:
            failure = ChannelClosed(f"{self._peer} is gone{where}")
        self._broken = str(failure)
        wake(self._connection)
        return failure

    def _next_frame(self, limit_bytes: int) -> Frame | None:
        """The next frame, or None if it was a heartbeat."""
        self._inside = self._end > self._start
        prelude = self._read_ahead(PRELUDE_BYTES)
        header_bytes, body_bytes = read_prelude(prelude, header_limit=self._header_limit, body_limit=limit_bytes)
        header = bytes(self._read_ahead(header_bytes))
        body = self._read_body(body_bytes) if body_bytes else NO_BODY
        self._inside = False
        if header == PING.header and not body_bytes:
            return None
        self.received_bytes += PRELUDE_BYTES + header_bytes + body_bytes
        return Frame(header, (body,))

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
        self._inside = True
        return nbytes
