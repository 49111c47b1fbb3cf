"""The end that dials: it opens both connections of a link, and tries again until it is let in or the time is over.

What it dialled it dials again when the connections break: see `call.Call`.
"""

import selectors
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any

from cutlayer.errors import CredentialError
from cutlayer.plan.limits import Limits
from cutlayer.transport.call import Call
from cutlayer.transport.identity import Identity
from cutlayer.transport.lanes import Lanes, lanes
from cutlayer.transport.link import Link
from cutlayer.transport.opening import (
    Answer,
    Deadline,
    Direction,
    Opening,
    hang_up,
    hear_answer,
    say,
    wake,
)
from cutlayer.transport.tls import KeyFiles, dialling_context, misfit


def dial(
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
    """A link of `party` to the listener `peer` at `address` (host, port).

    Tries again, ever more slowly, until `give_up_after_s` (`limits.join_timeout_s` if None) is over, then raises
    `ChannelTimeout`. What another try cannot mend is raised at once: `CredentialError` if either end does not accept
    the other's certificate or name, `ChannelError` if whoever answers is no listener of cutlayer. `pins` are SHA-256
    digests (hex) of the parties' public keys, by party. The files are read again, if they changed, at every try.
    """
    identity = Identity(dialling_context, credentials, address[0], plaintext=insecure_plaintext_on_loopback)
    call = _LanesCall(address, identity, party=party, peer=peer, limits=limits, pins=pins or {})
    return call.until_let_in(give_up_after_s)


class _LanesCall(Call):
    def __init__(self, address: tuple[str, int], identity: Identity, **whom: Any) -> None:
        super().__init__(address, identity, **whom)
        self._stopped = False
        self._trying: set[socket.socket] = set()
        self._lock = threading.Lock()

    def stop(self) -> None:
        """Ends an attempt that is being made, and all later ones."""
        with self._lock:
            self._stopped = True
            for connection in self._trying:
                wake(connection)

    def _try(self, deadline: Deadline, resumes: bool, received: int) -> tuple[Lanes, int]:
        def opening(direction: Direction) -> Opening:
            return Opening(self.party, direction, self._incarnation, self._life, resumes, received)

        with ExitStack() as undo:
            undo.callback(self._done)
            outgoing = self._lane(opening("to-listener"), deadline, undo)
            incoming = self._lane(opening("to-dialler"), deadline, undo)
            answers = [
                self._heard(connection, deadline) for connection in _as_they_answer(outgoing, incoming, deadline)
            ]
            if self._done():
                raise OSError("it was given up")
            undo.pop_all()
        return lanes(outgoing, incoming, self.limits, self._pool), answers[0].received

    def _done(self) -> bool:
        """The attempt is over. Returns whether it was stopped."""
        with self._lock:
            self._trying.clear()
            return self._stopped

    def _lane(self, opening: Opening, deadline: Deadline, undo: ExitStack) -> socket.socket:
        connection = self._connect(deadline)
        undo.callback(hang_up, connection)
        with self._lock:
            self._trying.add(connection)
            if self._stopped:
                raise OSError("it was given up")
        if isinstance(connection, ssl.SSLSocket):
            connection.settimeout(deadline.left_s())
            connection.do_handshake()
            if fault := misfit(connection.getpeercert(binary_form=True) or b"", self.peer, self.pins):
                raise CredentialError(f"whoever answers is not {self.peer}: {fault}; check the address and the plan")
        say(connection, opening, deadline)
        return connection

    def _connect(self, deadline: Deadline) -> socket.socket:
        connection = socket.create_connection(self.address, deadline.left_s())
        try:
            _refuse_echo(connection)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if (context := self.identity.context) is None:
                return connection
            return context.wrap_socket(connection, server_hostname=self.peer, do_handshake_on_connect=False)
        except BaseException:
            connection.close()
            raise

    def _heard(self, connection: socket.socket, deadline: Deadline) -> Answer:
        return self._checked(hear_answer(connection, deadline))


def _as_they_answer(a: socket.socket, b: socket.socket, deadline: Deadline) -> Iterator[socket.socket]:
    """Both, the one that answers first, first: where one breaks, the other would wait in vain."""
    left = [a, b]
    with selectors.DefaultSelector() as selector:
        for connection in left:
            selector.register(connection, selectors.EVENT_READ)
        while left:
            ready = {key.fd for key, _ in selector.select(deadline.left_s())}
            for connection in [each for each in left if each.fileno() in ready]:
                selector.unregister(connection)
                left.remove(connection)
                yield connection


def _refuse_echo(connection: socket.socket) -> None:
    """TCP may connect a port that nobody listens on to itself."""
    if connection.getsockname() == connection.getpeername():
        raise ConnectionRefusedError("Connection refused")
