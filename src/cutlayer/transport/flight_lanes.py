"""The two lanes of a link, as the two directions of one Flight stream. They do what `lanes` do."""

import threading
from collections.abc import Iterator
from typing import cast

from cutlayer.plan.limits import Limits
from cutlayer.protocol.wire import PRELUDE_BYTES, Frame, read_numbered
from cutlayer.transport.buffers import BufferPool
from cutlayer.transport.channel import NO_BODY
from cutlayer.transport.flight_stream import DATA, MESSAGE_BYTES, Stream
from cutlayer.transport.lanes import Arrived, Lanes, ReceivingLane, SendingLane


class FlightSendingLane:
    """The direction that this end writes, one thread at a time."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    @property
    def wrote_at(self) -> float:
        """When the last message left."""
        return self._stream.wrote_at

    @property
    def ready(self) -> bool:
        """Never: gRPC does not say whether a write would wait."""
        return False

    def write(self, frame: Frame, number: int, acknowledged: int) -> None:
        """Hands the frame to gRPC. Raises `OSError`, `TimeoutError` after `limits.send_timeout_s` among them."""
        self._stream.write(_messages(frame, number, acknowledged))

    def part(self, frame: Frame, timeout_s: float) -> None:
        """A last word; then the end."""
        self._stream.leave(tuple(_messages(frame, 0, 0)), timeout_s)

    def close(self) -> None:
        """Ends the stream at both ends, as soon as nobody writes here. Idempotent."""
        self._stream.close()


class FlightReceivingLane:
    """The direction that this end reads, straight into a body's own buffer."""

    def __init__(self, stream: Stream, limits: Limits, pool: BufferPool) -> None:
        self.inside = False
        """Whether a frame has begun to arrive, and not ended."""
        self._stream, self._pool, self._header_limit = stream, pool, limits.header_bytes
        self._reading = threading.Lock()

    def read(self, limit_bytes: int) -> Arrived:
        """The next frame. Raises `EOFError`, `FrameRefused`; `TimeoutError` after silence."""
        with self._reading:
            self.inside = False
            prelude = self._fill(memoryview(bytearray(PRELUDE_BYTES)))
            header_bytes, body_bytes, number, acknowledged = read_numbered(prelude, self._header_limit, limit_bytes)
            header = bytes(self._fill(memoryview(bytearray(header_bytes))))
            body = self._fill(self._pool.take(body_bytes)) if body_bytes else NO_BODY
            self.inside = False
            return Frame(header, (body,)), number, acknowledged

    def wake(self) -> None:
        """Ends the stream. What has arrived already can still be read."""
        self._stream.leave()

    def close(self) -> None:
        """Ends the stream at both ends, and waits until whoever reads here has woken up. Idempotent."""
        self._stream.stop_reading()
        self._stream.close()
        with self._reading:
            pass

    def _fill(self, view: memoryview) -> memoryview:
        at = 0
        while at < len(view):
            if not (nbytes := self._stream.read_into(view[at:])):
                raise EOFError
            at += nbytes
            self.inside = True
        return view


def flight_lanes(stream: Stream, limits: Limits, pool: BufferPool) -> Lanes:
    """The lanes of a stream whose opening is over."""
    outgoing, incoming = FlightSendingLane(stream), FlightReceivingLane(stream, limits, pool)
    return Lanes(cast(SendingLane, outgoing), cast(ReceivingLane, incoming))


def _messages(frame: Frame, number: int, acknowledged: int) -> Iterator[bytes]:
    """A frame's bytes in messages of `MESSAGE_BYTES`, and a last one of the rest."""
    message: list[bytes | memoryview] = [DATA]
    room = MESSAGE_BYTES
    for part in (memoryview(frame.prelude(number, acknowledged)), memoryview(frame.header), *frame.parts):
        view = part.cast("B") if part.nbytes else NO_BODY
        while view.nbytes > room:
            yield b"".join((*message, view[:room]))
            view, message, room = view[room:], [DATA], MESSAGE_BYTES
        message.append(view)
        room -= view.nbytes
    yield b"".join(message)
