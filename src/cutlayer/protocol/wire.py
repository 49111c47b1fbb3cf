"""Messages to frames and back. A frame is a prelude, a header and a body:

    4 bytes   magic and wire version
    4 bytes   header length        unsigned, big endian
    8 bytes   body length          unsigned, big endian
    8 bytes   number               the frame's place among all that this end has sent on the link, from 1
    8 bytes   acknowledged         how many frames of the other direction this end has received
    header    msgpack, one of `messages.Message | messages.Control`
    body      the tensors' raw bytes, little endian, each padded to 64 bytes

Both numbers are the link's: in memory they are 0, and so is the number of a frame that concerns only a connection.
Both lengths are checked against limits before anything is allocated; the body's length must be what the header's
tensors add up to. Nothing here is executed, looked up or instantiated by a name that a peer sent.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

from cutlayer.errors import FrameRefused
from cutlayer.plan.tensors import TensorShape
from cutlayer.protocol.messages import Control, Message

MAGIC = b"CUT\x02"
ALIGNMENT = 64
_PRELUDE = struct.Struct("!4sIQQQ")
PRELUDE_BYTES = _PRELUDE.size
_PADDING = memoryview(bytes(ALIGNMENT))

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Message | Control)

Payload = Sequence[memoryview]
Said = TypeVar("Said", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class Frame:
    """What a channel carries: a header and the body's parts, to be laid down one after another.

    A sent frame has a part per tensor (and paddings); a received one has a single part: one contiguous buffer,
    64-byte aligned, that stays valid as long as anything refers to it.
    """

    header: bytes
    parts: tuple[memoryview, ...] = ()
    body_bytes: int = field(init=False, compare=False)

    def __post_init__(self) -> None:
        nbytes = 0
        for part in self.parts:  # a sum over a generator takes longer than the rest of this
            nbytes += part.nbytes
        object.__setattr__(self, "body_bytes", nbytes)

    @property
    def nbytes(self) -> int:
        """All bytes on the wire, prelude included (before TLS)."""
        return PRELUDE_BYTES + len(self.header) + self.body_bytes

    def prelude(self, number: int = 0, acknowledged: int = 0) -> bytes:
        return _PRELUDE.pack(MAGIC, len(self.header), self.body_bytes, number, acknowledged)


def read_prelude(data: bytes | memoryview, *, header_limit: int, body_limit: int) -> tuple[int, int]:
    """Header and body length, both within their limits. Raises `FrameRefused`."""
    header_bytes, body_bytes, _, _ = read_numbered(data, header_limit, body_limit)
    return header_bytes, body_bytes


def read_numbered(data: bytes | memoryview, header_limit: int, body_limit: int) -> tuple[int, int, int, int]:
    """`read_prelude`, and the frame's number, and how many frames its sender has received. Raises `FrameRefused`."""
    magic, header_bytes, body_bytes, number, acknowledged = _PRELUDE.unpack(data)
    if magic != MAGIC:
        raise FrameRefused(f"the peer sent bytes that are no frame (they start with {bytes(magic)!r})")
    if header_bytes > header_limit:
        raise FrameRefused(f"the peer announced a header of {header_bytes:,} bytes; the limit is {header_limit:,}")
    if body_bytes > body_limit:
        raise FrameRefused(f"the peer announced a body of {body_bytes:,} bytes; the limit is {body_limit:,}")
    return header_bytes, body_bytes, number, acknowledged


def check_length(there: int, announced: int) -> None:
    """Raises `FrameRefused` if a body is not as long as its prelude says."""
    if there != announced:
        raise FrameRefused(f"the peer announced a body of {announced:,} bytes and sent {there:,}")


def encode(message: msgspec.Struct, payload: Payload = ()) -> Frame:
    """A frame of `message`; `payload` has one contiguous byte view per tensor the message declares."""
    header = _encoder.encode(message)
    if not payload:
        return Frame(header)
    parts = []
    for view in payload:
        parts.append(view)
        if padding := -view.nbytes % ALIGNMENT:
            parts.append(_PADDING[:padding])
    return Frame(header, tuple(parts))


def decode(frame: Frame) -> tuple[Message | Control, list[memoryview]]:
    """The message, and one byte view into the frame's body per tensor. Raises `FrameRefused`."""
    return decode_of(frame, _decoder)


def decode_of(frame: Frame, decoder: "msgspec.msgpack.Decoder[Said]") -> tuple[Said, list[memoryview]]:
    """`decode` for another closed set of messages: the decoder's."""
    try:
        message = decoder.decode(frame.header)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FrameRefused(f"the peer sent a header that is no message of this protocol: {error}") from error
    sizes = part_bytes(message)
    declared = sum(map(padded, sizes))
    if frame.body_bytes != declared:
        raise FrameRefused(
            f"the peer sent a body of {frame.body_bytes:,} bytes under a header that declares {declared:,}"
        )
    if not sizes:
        return message, []
    body = frame.parts[0] if frame.parts else memoryview(b"")
    views, start = [], 0
    for nbytes in sizes:
        views.append(body[start : start + nbytes])
        start += padded(nbytes)
    return message, views


def part_bytes(message: msgspec.Struct) -> Sequence[int]:
    """How long each of the body's parts is: the tensors' own bytes, or what a codec made of them."""
    sizes: Sequence[int] = getattr(message, "sizes", ())
    if sizes:
        return sizes
    tensors: Sequence[TensorShape] = getattr(message, "tensors", ())
    return [tensor.nbytes for tensor in tensors]


def body_bytes(tensors: Sequence[TensorShape]) -> int:
    """The length of a body that carries these tensors."""
    return sum(padded(tensor.nbytes) for tensor in tensors)


def padded(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
