"""The end that dials a Flight listener, and dials again when the stream broke. What `dialler` is for lanes."""

import socket
import ssl
import threading
from collections.abc import Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from pyarrow import flight

from cutlayer.errors import ChannelError, CredentialError, FrameRefused
from cutlayer.plan.limits import Limits
from cutlayer.transport.call import Call, PassingError
from cutlayer.transport.flight_lanes import flight_lanes
from cutlayer.transport.flight_listener import message_of
from cutlayer.transport.flight_proof import prove
from cutlayer.transport.flight_stream import FAULTS, MESSAGE_BYTES, Ends, Stream
from cutlayer.transport.flight_words import command_of, read_reply, said
from cutlayer.transport.identity import Identity
from cutlayer.transport.lanes import Lanes
from cutlayer.transport.link import Link
from cutlayer.transport.opening import Answer, Deadline, Opening, wake
from cutlayer.transport.tls import KeyFiles, dialling_context, misfit, public_key_digest

HTTP2 = "h2"
OPTIONS = [
    ("grpc.max_receive_message_length", MESSAGE_BYTES + 1024),
    ("grpc.use_local_subchannel_pool", 1),  # a new stream is a new connection: an older one may hang
    ("grpc.enable_http_proxy", 0),  # no variable of the environment says where frames go
]
"""For gRPC. The listener's side has no such options in Python."""


def dial_flight(
    address: tuple[str, int],
    credentials: KeyFiles | None,
    *,
    party: str,
    peer: str,
    limits: Limits,
    give_up_after_s: float | None = None,
    pins: Mapping[str, str] | None = None,
    insecure_plaintext_on_loopback: bool = False,
) -> Link:
    """A link of `party` to the `FlightListener` of `peer` at `address`. See `dialler.dial`, whose promises it keeps."""
    identity = Identity(_h2_context, credentials, address[0], plaintext=insecure_plaintext_on_loopback)
    files = None if insecure_plaintext_on_loopback else credentials
    call = _FlightCall(address, identity, files, party=party, peer=peer, limits=limits, pins=pins or {})
    return call.until_let_in(give_up_after_s)


def answers_flight(address: tuple[str, int], files: KeyFiles, peer: str, timeout_s: float) -> bool:
    """Whether the peer at `address` speaks HTTP/2 over TLS, as Flight does. Raises `CredentialError`."""
    try:
        with (
            closing(socket.create_connection(address, timeout_s)) as plain,
            closing(_h2_context(files).wrap_socket(plain, server_hostname=peer)) as connection,
        ):
            return connection.selected_alpn_protocol() == HTTP2
    except OSError:
        return False


def _h2_context(files: KeyFiles) -> ssl.SSLContext:
    context = dialling_context(files)
    context.set_alpn_protocols([HTTP2])
    return context


def _greets(connection: socket.socket) -> bool:
    """Whether the listener has accepted our certificate: then HTTP/2 begins with its settings. gRPC sends no alert."""
    try:
        return bool(connection.recv(1))
    except ConnectionError:
        return False


class _FlightCall(Call):
    what = "Flight listener"
    faults = FAULTS

    def __init__(self, address: tuple[str, int], identity: Identity, files: KeyFiles | None, **whom: Any) -> None:
        super().__init__(address, identity, **whom)
        self._files = files
        self._lock = threading.Lock()
        self._stopped = False
        self._looking: socket.socket | None = None
        self._stream: Stream | None = None

    def stop(self) -> None:
        """Ends an attempt that is being made, and all later ones."""
        with self._lock:
            self._stopped = True
            if self._looking is not None:
                wake(self._looking)
            if self._stream is not None:
                self._stream.leave()

    def _fault(self, error: Exception) -> str:
        return f"Flight says: {str(error).partition('. gRPC client')[0]}"

    def _try(self, deadline: Deadline, resumes: bool, received: int) -> tuple[Lanes, int]:
        opening = Opening(self.party, "to-listener", self._incarnation, self._life, resumes, received)
        certificate = self._look(deadline)
        stream = self._call(certificate, opening)
        try:
            self._hold(stream)
            answer = self._heard(stream, certificate, opening, deadline)
            stream.opened = True
        except BaseException:
            stream.stop_reading()
            stream.leave()
            raise
        finally:
            with self._lock:
                self._stream = None
        return flight_lanes(stream, self.limits, self._pool), answer.received

    def _hold(self, stream: Stream) -> None:
        """What a stop has to end from now on."""
        with self._lock:
            self._stream = stream
            if self._stopped:
                raise OSError("it was given up")

    def _look(self, deadline: Deadline) -> bytes:
        """The listener's certificate (DER), once it has accepted ours; b"" where there is no TLS."""
        with closing(self._connect(deadline)) as connection:
            if not isinstance(connection, ssl.SSLSocket):
                return b""
            connection.settimeout(deadline.left_s())
            connection.do_handshake()
            certificate = connection.getpeercert(binary_form=True) or b""
            if fault := misfit(certificate, self.peer, self.pins):
                raise CredentialError(f"whoever answers is not {self.peer}: {fault}; check the address and the plan")
            if connection.selected_alpn_protocol() != HTTP2:
                raise ChannelError(
                    f"{self.peer} does not speak Flight: both ends of a link need the same transport; "
                    f'{self.peer} needs transport = "flight" in its own file, or {self.party} must leave it out'
                )
            connection.settimeout(deadline.left_s())
            if not _greets(connection):
                raise PassingError(f"{self.peer} hung up when it saw our certificate: has it expired?")
            return certificate

    def _connect(self, deadline: Deadline) -> socket.socket:
        connection = socket.create_connection(self.address, deadline.left_s())
        if (context := self.identity.context) is not None:
            connection = context.wrap_socket(connection, server_hostname=self.peer, do_handshake_on_connect=False)
        with self._lock:
            self._looking = connection
            if not self._stopped:
                return connection
        connection.close()
        raise OSError("it was given up")

    def _call(self, certificate: bytes, opening: Opening) -> Stream:
        host, port = self.address
        place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        options: dict[str, Any] = {"generic_options": OPTIONS}
        if self._files is not None:
            options["tls_root_certs"] = ssl.DER_cert_to_PEM_cert(certificate).encode()
            options["cert_chain"] = Path(self._files.certificate).read_bytes()
            options["private_key"] = Path(self._files.key).read_bytes()
            options["override_hostname"] = self.peer
        client = flight.FlightClient(f"grpc+{'tls' if self._files else 'tcp'}://{place}", **options)
        writer, reader = client.do_exchange(flight.FlightDescriptor.for_command(command_of(opening)))

        def release() -> None:
            for end in (reader.cancel, writer.close, client.close):
                with suppress(*FAULTS):
                    end()

        ends = Ends(
            read=lambda: message_of(reader),
            write=writer.write_metadata,
            finish=writer.done_writing,
            cut=reader.cancel,
            release=release,
        )
        stream = Stream(ends, self.limits, self.peer)
        stream.start()
        return stream

    def _heard(self, stream: Stream, certificate: bytes, opening: Opening, deadline: Deadline) -> Answer:
        reply = read_reply(stream.word(deadline.left_s()))
        if not isinstance(reply, Answer):
            if self._files is None:
                raise FrameRefused("it asks for a proof where there are no keys")
            key = public_key_digest(certificate)
            stream.write([said(prove(self._files, self.peer, key, reply, opening))])
            reply = read_reply(stream.word(deadline.left_s()))
        if not isinstance(reply, Answer):
            raise FrameRefused("it asked for a second proof")
        return self._checked(reply)
