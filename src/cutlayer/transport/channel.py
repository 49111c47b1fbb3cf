"""What every link between two parties can do. `memory` and `lanes` keep the same promises, tested by one suite."""

from typing import Protocol

from cutlayer.protocol.messages import Ping
from cutlayer.protocol.wire import Frame, encode

PING = encode(Ping())
"""The heartbeat's frame. Channels send and swallow it; nobody above ever sees one."""

NO_BODY = memoryview(b"")
"""The body of a received frame that carries none: a received frame always has exactly one part."""


class Channel(Protocol):
    """A link to one peer. Frames arrive in the order they were sent, or the link fails and says so.

    One thread sends and one thread receives (they may be two); `close` may come from any. An error in one direction
    is final for that direction: the other goes on, so that a last word can still leave or arrive.
    """

    @property
    def peer(self) -> str:
        """The party at the other end: who its certificate says it is, not who it claims to be."""

    @property
    def sent_bytes(self) -> int:
        """Bytes of all frames sent, preludes and headers included; heartbeats and TLS's own bytes are not counted."""

    @property
    def received_bytes(self) -> int:
        """Bytes of all frames received, counted like `sent_bytes`."""

    def send(self, frame: Frame) -> int:
        """Blocks until the frame was handed to the link and returns its bytes on the wire.

        The frame's parts may be overwritten as soon as this returns. Raises `ChannelTimeout` if the frame did not
        leave within `limits.send_timeout_s`, `ChannelClosed` if the peer or this end is gone.
        """

    def receive(self, limit_bytes: int) -> Frame:
        """Blocks until a frame is there; its body is one contiguous buffer, aligned to 64 bytes.

        Lengths are checked before anything is allocated: a body over `limit_bytes` or a header over
        `limits.header_bytes` raises `FrameRefused`. Raises `ChannelTimeout` after `limits.silence_timeout_s` without
        a single byte (heartbeats count), `ChannelClosed` if the peer or this end is gone and all frames were received.
        """

    def close(self) -> None:
        """Ends the link and wakes whoever waits on it, at both ends. Frames already sent still arrive. Idempotent."""
