"""What every link between two parties can do. `memory` and `lanes` keep the same promises, tested by one suite."""

from typing import Protocol

from cutlayer.protocol.messages import Ping
from cutlayer.protocol.wire import Frame, encode

PING = encode(Ping())
"""The heartbeat's frame. Channels send and swallow it; nobody above ever sees one."""

NO_BODY = memoryview(b"")
"""The body of a received frame that carries none: a received frame always has exactly one part."""


class Channel(Protocol):
    """A link to one peer. Each frame arrives once, in the order they were sent, or the link fails and says so.

    Only urgent frames go ahead: of all others that have not begun to leave. They keep their order among themselves, and
    so do the others.

    One thread sends and one thread receives (they may be two); `close` may come from any. Who sends must receive as
    well: acknowledgements come with what is received. An error in one direction is final for that direction: the other
    goes on, so that a last word can still leave or arrive.
    """

    @property
    def peer(self) -> str:
        """The party at the other end: who its certificate says it is, not who it claims to be."""

    @property
    def sent_bytes(self) -> int:
        """Bytes of all frames sent, each once, with preludes and headers; not heartbeats, nor TLS's own bytes."""

    @property
    def received_bytes(self) -> int:
        """Bytes of all frames received, counted like `sent_bytes`."""

    def send(self, frame: Frame, *, wait: bool = True, urgent: bool = False) -> int:
        """Hands the frame to the link and returns its bytes on the wire.

        It blocks until the frame has left; with `wait=False` only where there is no room for it: the link sends it
        while the caller computes. Where the frame is small and the link idle, it leaves at once either way. Nobody
        changes a frame's parts after this: the link keeps them, and no copy, until the peer has acknowledged them.

        There is no room while so much is unacknowledged (`limits.queued_frames`, `limits.queued_bytes`); one frame
        always fits, and a quarter as much again is kept free for `urgent` ones. Raises `ChannelTimeout` if nothing
        left or was acknowledged for `limits.send_timeout_s`; `ChannelClosed` if the peer or this end is gone. What
        befalls a frame that nobody waited for, whoever sends or receives next is told.
        """

    def receive(self, limit_bytes: int) -> Frame:
        """Blocks until a frame is there; its body is one contiguous buffer, aligned to 64 bytes.

        Lengths are checked before anything is allocated: a body over `limit_bytes` or a header over
        `limits.header_bytes` raises `FrameRefused`. Raises `ChannelTimeout` after `limits.silence_timeout_s` without
        a single byte (heartbeats count), `ChannelClosed` if the peer or this end is gone and all frames were received;
        where connections can be made anew, only once that has failed for `limits.reconnect_timeout_s`.
        """

    def close(self) -> None:
        """Ends the link and wakes whoever waits on it, at both ends. Idempotent.

        Frames already sent still arrive: it waits for those that have not left, as long as the peer takes them and for
        `limits.send_timeout_s` at most.
        """
