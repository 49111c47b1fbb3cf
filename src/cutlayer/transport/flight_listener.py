"""The end that listens for Arrow Flight streams. What `listener.Listener` is for lanes."""

import atexit
import socket
import threading
from collections import deque
from collections.abc import Callable, Container, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from pyarrow import flight

from cutlayer.errors import ChannelError, FrameRefused
from cutlayer.plan.limits import Limits
from cutlayer.transport.flight_cut import cut
from cutlayer.transport.flight_meeting import FlightMeeting
from cutlayer.transport.flight_proof import challenge, fault_of, own_key
from cutlayer.transport.flight_stream import FAULTS, WORD, Ends, Stream
from cutlayer.transport.flight_words import read_opening, read_proof, said
from cutlayer.transport.link import Link
from cutlayer.transport.listener import REMEMBERED_REFUSALS, SENTENCE, Refusal
from cutlayer.transport.meeting import UnwelcomeError
from cutlayer.transport.opening import Answer, Opening
from cutlayer.transport.tls import KeyFiles, context_for, listening_context

CLOSE_S = 1.0
"""How long a close waits for streams that are ending."""
ABANDON_POLL_S = 0.05


class FlightListener:
    """Waits at `address` for the parties in `allowed`. See `Listener`, of which it keeps the promises but these:

    its own certificate is read once, so that a renewed one needs a new process; who fails at TLS is not told of, since
    Flight does not say; and `pins` need a proof (`flight_proof`).
    """

    def __init__(
        self,
        address: tuple[str, int],
        credentials: KeyFiles | None,
        *,
        party: str,
        allowed: Container[str],
        limits: Limits,
        pins: Mapping[str, str] | None = None,
        on_refused: Callable[[Refusal], None] | None = None,
        insecure_plaintext_on_loopback: bool = False,
    ) -> None:
        self.on_trouble: Callable[[str], None] = lambda sentence: None
        self.newcomers: Container[str] = allowed
        """Of those allowed, who may open a new link; the others may take up the one that they have."""
        context_for(listening_context, credentials, address[0], plaintext=insecure_plaintext_on_loopback)
        files = None if insecure_plaintext_on_loopback else credentials
        self._own_key = own_key(files) if files else ""
        self._party, self._allowed, self._pins, self._limits = party, allowed, pins or {}, limits
        self._on_refused = on_refused
        self._refused: deque[Refusal] = deque(maxlen=REMEMBERED_REFUSALS)
        self._meeting = FlightMeeting(party, limits, on_trouble=lambda sentence: self.on_trouble(sentence))
        self._lock = threading.Lock()
        self._streams: dict[Stream, Callable[[], None]] = {}  # all that are not over, and how to cut them
        self._server = _serve(address, files, self._receive)
        self.port: int = self._server.port
        self._closer = threading.Thread(target=self._server.shutdown, daemon=True, name="cutlayer-flight-closing")
        atexit.register(self._abandon)  # called before Flight's own, which waits for all streams

    @property
    def refused(self) -> tuple[Refusal, ...]:
        """Who was not let in, the oldest first; the last 256 of them."""
        return tuple(self._refused)

    def accept(self, timeout_s: float | None = None) -> Link:
        """The next party's link. Raises `ChannelTimeout` if nobody came, `ChannelClosed` if this was closed."""
        return self._meeting.next_link(timeout_s)

    def cut_off(self, party: str, reason: str) -> None:
        """Ends the party's link at once and tells it why; who is no longer `allowed` cannot come again."""
        self._meeting.cut_off(party, reason)

    def close(self) -> None:
        """Stops listening and ends what was not accepted yet; accepted links stay with their owner. Idempotent."""
        self._shut()
        self._meeting.close()
        with self._lock:
            for stream, cut_it in self._streams.items():
                if not stream.opened:
                    cut_it()
        self._finish()

    def _shut(self) -> None:
        with self._lock:
            if self._closer.ident is None:
                self._closer.start()

    def _abandon(self) -> None:
        """The process ends with streams open: they break, as connections would."""
        self._shut()
        while self._closer.is_alive():
            with self._lock:
                cuts = tuple(self._streams.values())
            for cut_it in cuts:
                cut_it()
            self._closer.join(ABANDON_POLL_S)

    def _finish(self) -> None:
        """Waits for the end of a server that was told to end, unless links of it are still open."""
        with self._lock:
            done = self._closer.ident is not None and all(
                stream.over.is_set() for stream in self._streams if stream.opened
            )
        if done:
            self._closer.join(CLOSE_S)
            if not self._closer.is_alive():
                atexit.unregister(self._abandon)

    # ------------------------------------------------------------------ a call, in a thread of Flight's

    def _receive(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        caller = context.peer()
        address = unquote(caller).partition(":")[2]
        ends = Ends(
            read=lambda: message_of(reader),
            write=writer.write_metadata,
            finish=lambda: None,  # the end of the call says it
            cut=lambda: cut(caller, self.port),
            settle=self._finish,
        )
        with self._lock:
            crowded = sum(not stream.opened for stream in self._streams) >= self._limits.connections
            if not crowded:
                stream = Stream(ends, self._limits, address)
                self._streams[stream] = ends.cut
        if crowded:
            self._note(address, f"{self._limits.connections} other connections have not said yet whose they are")
            return
        try:
            self._open(stream, ends, context, descriptor)
        except UnwelcomeError as error:
            with suppress(OSError):
                stream.write([said(Answer(self._party, str(error)[:SENTENCE], error.passing))])
            self._turn_away(stream, address, str(error))
        except FrameRefused as error:
            self._turn_away(stream, address, str(error))
        except (StopIteration, *FAULTS):
            self._turn_away(stream, address, f"it hung up, or took over {self._limits.handshake_timeout_s:g} s")
        finally:
            stream.pump()
            with self._lock:
                del self._streams[stream]

    def _open(self, stream: Stream, ends: Ends, context: Any, descriptor: Any) -> None:
        opening = read_opening(descriptor.command)
        if opening.party not in self._allowed or not (opening.resumes or opening.party in self.newcomers):
            raise UnwelcomeError(f"{opening.party!r} is none of the parties that {self._party} waits for")
        if self._own_key:
            self._identify(stream, ends, context.peer_identity(), opening)
        self._meeting.enter(stream, opening)

    def _identify(self, stream: Stream, ends: Ends, name: bytes, opening: Opening) -> None:
        if (certified := name.decode(errors="replace")) != opening.party:
            raise UnwelcomeError(f"its certificate names {certified or 'nobody'} first, not {opening.party}")
        asked = challenge()
        stream.write([said(asked)])
        word = ends.read()
        if bytes(word[:1]) != WORD:
            raise FrameRefused("it sent no proof of its key")
        proof, key = read_proof(bytes(word[1:])), self._own_key
        if fault := fault_of(
            proof, listener=self._party, listener_key=key, challenge=asked, opening=opening, pins=self._pins
        ):
            raise UnwelcomeError(fault)

    def _turn_away(self, stream: Stream, address: str, reason: str) -> None:
        self._note(address, reason)
        stream.stop_reading()
        stream.leave()

    def _note(self, address: str, reason: str) -> None:
        refusal = Refusal(address, reason)
        self._refused.append(refusal)
        if self._on_refused:
            self._on_refused(refusal)


class _Server(flight.FlightServerBase):  # type: ignore[misc]
    """Hands each call to `receive`, in a thread of its own, and serves nothing else."""

    def __init__(self, receive: Callable[[Any, Any, Any, Any], None], location: str, **options: Any) -> None:
        self._receive = receive
        super().__init__(location, **options)

    def do_exchange(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        """A stream. Returns when it is over."""
        self._receive(context, descriptor, reader, writer)


def _serve(address: tuple[str, int], files: KeyFiles | None, receive: Callable[[Any, Any, Any, Any], None]) -> _Server:
    host, port = address
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if port:
        _check_free(address)
    options: dict[str, Any] = {}
    if files is not None:
        key, certificate, authority = (
            Path(path).read_bytes() for path in (files.key, files.certificate, files.authority)
        )
        options = {
            "tls_certificates": [(certificate, key)],
            "verify_client": True,
            "root_certificates": authority,
        }
    try:
        return _Server(receive, f"grpc+{'tls' if files else 'tcp'}://{place}", **options)
    except FAULTS as error:
        raise ChannelError(f"cannot listen at {place}: {error}") from error


def _check_free(address: tuple[str, int]) -> None:
    """gRPC's own sentence on a port that is taken names no port. Raises `ChannelError`."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    try:
        socket.create_server(address, family=family).close()
    except OSError as error:
        raise ChannelError(
            f"cannot listen at {address[0]}:{address[1]}: {error.strerror or error}; "
            "stop the program that listens there or take another port"
        ) from error


def message_of(reader: Any) -> memoryview:
    """The next message, without a copy. Raises `StopIteration` at the end, and what Flight raises."""
    chunk = reader.read_chunk()
    if chunk.data is not None or not chunk.app_metadata:
        raise OSError("a message that is none of ours")
    return memoryview(chunk.app_metadata).cast("B")
