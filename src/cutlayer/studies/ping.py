"""How far apart two parties are: frames of growing size, asked and answered over the lanes that a run would use.

The party that dials asks, the one that listens answers. What is said is a closed set of its own, headers as in
`protocol.messages`; the bodies are zeros. Each figure is of whole frames: mutual TLS, both ends' threads and all.
"""

import statistics
import time
from collections.abc import Callable
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from cutlayer.errors import FrameRefused, RemoteProtocolError
from cutlayer.plan.tensors import TensorShape
from cutlayer.protocol.messages import Tensors
from cutlayer.protocol.wire import Frame, Said, decode_of, encode
from cutlayer.studies.lines import Measured
from cutlayer.transport.channel import Channel

VERSION = 1
ROUND_TRIPS = 20
SMALLEST_BYTES, LARGEST_BYTES, GROWTH = 16 * 1024, 64 * 2**20, 4
LONG_ENOUGH_S = 1.0
"""A frame that takes longer says enough about the bandwidth: no larger one follows."""


class Ask(Struct, frozen=True, forbid_unknown_fields=True, tag="ask"):
    """Here is a body; answer with one of so many bytes."""

    version: Annotated[int, Meta(ge=0, le=2**31)]
    number: Annotated[int, Meta(ge=0, le=2**31)]
    answer_bytes: Annotated[int, Meta(ge=0, le=LARGEST_BYTES)]
    tensors: Tensors = ()


class Answer(Struct, frozen=True, forbid_unknown_fields=True, tag="answer"):
    """What was asked for by this number."""

    number: Annotated[int, Meta(ge=0, le=2**31)]
    tensors: Tensors = ()


class Found(Struct, frozen=True, forbid_unknown_fields=True, tag="found"):
    """The last word of who asked: what it measured."""

    measured: Measured


_asked = msgspec.msgpack.Decoder(Ask | Found)
_answered = msgspec.msgpack.Decoder(Answer)

Progress = Callable[[str], None]


def measure(channel: Channel, party: str, progress: Progress = lambda sentence: None) -> Measured:
    """Ask the peer, as `party`, and tell it what came of it. Raises `ChannelError`, `RemoteProtocolError`."""
    asker = _Asker(channel)
    asker.seconds(0, 0)  # the first frames of a link are slower
    trips = [asker.seconds(0, 0) for _ in range(ROUND_TRIPS)]
    rtt_s = statistics.median(trips)
    progress(f"round trip {1e3 * rtt_s:.2f} ms")
    up, largest = _rate(lambda nbytes: asker.seconds(nbytes, 0), rtt_s)
    down, _ = _rate(lambda nbytes: asker.seconds(0, nbytes), rtt_s)
    measured = Measured(
        dialler=party,
        listener=channel.peer,
        rtt_s=rtt_s,
        lowest_rtt_s=min(trips),
        up_bytes_per_s=up,
        down_bytes_per_s=down,
        frames=asker.number,
        largest_bytes=largest,
    )
    channel.send(encode(Found(measured)))
    return measured


def answer(channel: Channel) -> Measured:
    """Answer the peer's frames until it says what it measured. Raises `ChannelError`, `RemoteProtocolError`."""
    while True:
        word, _ = _read(channel, _asked)
        if isinstance(word, Found):
            return word.measured
        if word.version != VERSION:
            detail = f"it measures by version {word.version}, this is {VERSION}: update the older one"
            raise RemoteProtocolError("no-message", channel.peer, detail)
        channel.send(_with_body(Answer(word.number, _tensors(word.answer_bytes)), word.answer_bytes))


class _Asker:
    """Asks one thing after another."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.number = 0

    def seconds(self, up_bytes: int, down_bytes: int) -> float:
        """From sending a frame with such a body until an answer with such a body is here."""
        self.number += 1
        start = time.perf_counter()
        self._channel.send(_with_body(Ask(VERSION, self.number, down_bytes, _tensors(up_bytes)), up_bytes))
        word, nbytes = _read(self._channel, _answered)
        took_s = time.perf_counter() - start
        if (word.number, nbytes) != (self.number, down_bytes):
            raise RemoteProtocolError("out-of-order", self._channel.peer, "an answer to what was not asked")
        return took_s


def _rate(seconds: Callable[[int], float], rtt_s: float) -> tuple[float, int]:
    """Bytes a second of the largest frame sent, and its bytes: ever larger ones, until one takes long enough."""
    nbytes, took_s = SMALLEST_BYTES, seconds(SMALLEST_BYTES)
    while took_s - rtt_s < LONG_ENOUGH_S / GROWTH and nbytes * GROWTH <= LARGEST_BYTES:
        nbytes *= GROWTH
        took_s = seconds(nbytes)
    return nbytes / max(took_s - rtt_s, 1e-9), nbytes


def _tensors(nbytes: int) -> tuple[TensorShape, ...]:
    return (TensorShape("uint8", (nbytes,)),) if nbytes else ()


def _with_body(word: Ask | Answer, nbytes: int) -> Frame:
    return encode(word, (memoryview(bytes(nbytes)),) if nbytes else ())


def _read(channel: Channel, decoder: "msgspec.msgpack.Decoder[Said]") -> tuple[Said, int]:
    """What the peer says next, and the bytes of its body. Raises `RemoteProtocolError` for what is not said here."""
    frame = channel.receive(LARGEST_BYTES)
    try:
        word, _ = decode_of(frame, decoder)
    except FrameRefused as error:
        detail = f"it is not measuring ({error}); `cutlayer ping` runs at both ends, in the same version"
        raise RemoteProtocolError("no-message", channel.peer, detail) from error
    return word, frame.body_bytes
