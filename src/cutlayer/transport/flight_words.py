"""What is said on a Flight stream before it becomes a link: `opening.Opening` in the call's descriptor; then, under
TLS, a challenge and its proof; then `opening.Answer`."""

from typing import TypeVar

import msgspec
from msgspec import Struct

from cutlayer.errors import FrameRefused
from cutlayer.transport.flight_proof import Challenge, Proof
from cutlayer.transport.flight_stream import WORD
from cutlayer.transport.opening import OPENING_BYTES, Answer, Opening

Word = TypeVar("Word")

_encoder = msgspec.msgpack.Encoder()
_opening = msgspec.msgpack.Decoder(Opening)
_proof = msgspec.msgpack.Decoder(Proof)
_reply: "msgspec.msgpack.Decoder[Challenge | Answer]" = msgspec.msgpack.Decoder(Challenge | Answer)


def said(word: Struct) -> bytes:
    """A message of the stream."""
    return WORD + _encoder.encode(word)


def command_of(opening: Opening) -> bytes:
    """What the call's descriptor carries."""
    return _encoder.encode(opening)


def read_opening(command: bytes | None) -> Opening:
    """Raises `FrameRefused`."""
    if command is None or len(command) > OPENING_BYTES:
        raise FrameRefused("it opened the stream with no opening of ours")
    return _read(command, _opening)


def read_proof(word: bytes) -> Proof:
    """Raises `FrameRefused`."""
    return _read(word, _proof)


def read_reply(word: bytes) -> Challenge | Answer:
    """Raises `FrameRefused`."""
    return _read(word, _reply)


def _read(word: bytes, decoder: "msgspec.msgpack.Decoder[Word]") -> Word:
    try:
        return decoder.decode(word)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FrameRefused(f"it opened the stream with no word of ours ({error})") from error
