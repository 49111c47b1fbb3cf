"""What is said on a connection before it becomes a lane: who calls, for which direction, and whether that is welcome.

A link is two connections, one for each direction, since a TLS connection must not be read and written by two threads.
The dialler opens both and sends an `Opening` on each; the listener pairs them and sends an `Answer` on each.
"""

import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from cutlayer.errors import FrameRefused
from cutlayer.protocol.messages import Count, Name, Sentence
from cutlayer.protocol.wire import PRELUDE_BYTES, Frame, read_prelude

OPENING_BYTES = 1024
ANSWER_BYTES = 8192
LIFE_BYTES = 16
DRAIN_BYTES = 65_536
DRAIN_S = 0.5

Direction = Literal["to-listener", "to-dialler"]


class Opening(Struct, frozen=True, tag="opening"):
    """From the dialler: this connection will carry frames in this direction.

    `incarnation` is the same on both connections of a pair and greater for each later pair of that party. `life` is
    the link's, drawn once. With `resumes` the pair takes up a link that broke, and `received` frames of it arrived.
    """

    party: Name
    direction: Direction
    incarnation: Annotated[int, Meta(ge=0, le=2**63 - 1)]
    life: Annotated[bytes, Meta(min_length=LIFE_BYTES, max_length=LIFE_BYTES)]
    resumes: bool = False
    received: Count = 0


class Answer(Struct, frozen=True, tag="answer"):
    """From the listener: welcome, if `refusal` is empty, else why not, and whether to try again makes sense.

    Where a link is taken up again, `received` frames of it have arrived here.
    """

    party: Name
    refusal: Sentence = ""
    passing: bool = False
    received: Count = 0


class Deadline:
    """A moment after which a connection's opening has taken too long."""

    def __init__(self, timeout_s: float) -> None:
        self._at = time.monotonic() + timeout_s

    def left_s(self) -> float:
        """Raises `TimeoutError` when nothing is left."""
        if (left := self._at - time.monotonic()) <= 0:
            raise TimeoutError("it took too long")
        return left


Word = TypeVar("Word")

_encoder = msgspec.msgpack.Encoder()
_opening = msgspec.msgpack.Decoder(Opening)
_answer = msgspec.msgpack.Decoder(Answer)


def say(connection: socket.socket, word: Opening | Answer, deadline: Deadline) -> None:
    """Raises `OSError`."""
    frame = Frame(_encoder.encode(word))
    connection.settimeout(deadline.left_s())
    connection.sendall(frame.prelude() + frame.header)


def hear_opening(connection: socket.socket, deadline: Deadline) -> Opening:
    """Raises `FrameRefused`, `OSError`; `EOFError` if the other end hung up."""
    return _hear(connection, deadline, OPENING_BYTES, _opening.decode)


def hear_answer(connection: socket.socket, deadline: Deadline) -> Answer:
    """Raises `FrameRefused`, `OSError`; `EOFError` if the other end hung up."""
    return _hear(connection, deadline, ANSWER_BYTES, _answer.decode)


def _hear(connection: socket.socket, deadline: Deadline, limit_bytes: int, decode: Callable[[bytes], Word]) -> Word:
    prelude = _exactly(connection, PRELUDE_BYTES, deadline)
    header_bytes, _ = read_prelude(prelude, header_limit=limit_bytes, body_limit=0)
    try:
        return decode(_exactly(connection, header_bytes, deadline))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FrameRefused(f"it opened the connection with no opening of ours ({error})") from error


def _exactly(connection: socket.socket, nbytes: int, deadline: Deadline) -> bytes:
    data = bytearray()
    while len(data) < nbytes:
        connection.settimeout(deadline.left_s())
        piece = connection.recv(nbytes - len(data))
        if not piece:
            raise EOFError("it hung up")
        data += piece
    return bytes(data)


def part(connection: socket.socket) -> None:
    """Closes a connection so that what was said last still arrives: unread bytes would turn the close into a reset."""
    with suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_WR)
        deadline, drained = Deadline(DRAIN_S), 0
        while drained < DRAIN_BYTES:
            connection.settimeout(deadline.left_s())
            piece = socket.socket.recv(connection, 4096)
            if not piece:
                break
            drained += len(piece)
    hang_up(connection)


def hang_up(connection: socket.socket) -> None:
    """Wakes whoever waits on the connection, then closes it."""
    wake(connection)
    connection.close()


def wake(connection: socket.socket) -> None:
    """Ends a connection in both directions, below TLS, so that whoever waits on it wakes up.

    `SSLSocket.shutdown` would not do: it drops TLS first, and a waiting thread might go on in plain text.
    """
    with suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)
