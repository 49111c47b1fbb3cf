"""The end that dials: it opens both connections of a link, and tries again until it is let in or the time is over.

What it dialled it dials again when the connections break: `_Call` is a link's `Redial`.
"""

import secrets
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field

from cutlayer.errors import ChannelError, ChannelTimeout, CredentialError, FrameRefused
from cutlayer.plan.limits import Limits
from cutlayer.transport.buffers import BufferPool
from cutlayer.transport.identity import Identity
from cutlayer.transport.keeper import SHORTEST_TRY_S, FinalError, pauses
from cutlayer.transport.lanes import Lanes, lanes
from cutlayer.transport.link import Link
from cutlayer.transport.opening import (
    LIFE_BYTES,
    Answer,
    Deadline,
    Direction,
    Opening,
    hang_up,
    hear_answer,
    say,
    wake,
)
from cutlayer.transport.tls import KeyFiles, dialling_context, misfit, why_refused


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
    call = _Call(address, identity, party, peer, limits, pins or {})
    patience_s = limits.join_timeout_s if give_up_after_s is None else give_up_after_s
    started = time.monotonic()
    for pause_s in pauses():
        left_s = patience_s - (time.monotonic() - started)
        try:
            return call.first(max(left_s, SHORTEST_TRY_S))
        except _PassingError as error:
            reason = str(error)
        left_s = patience_s - (time.monotonic() - started)
        if left_s <= SHORTEST_TRY_S:
            break
        time.sleep(min(left_s / 2, pause_s))
    raise ChannelTimeout(
        f"{party} tried for {patience_s:g} s to reach {peer} at {address[0]}:{address[1]}; "
        f"the last attempt ended with: {reason}"
    )


class _PassingError(ChannelError):
    """This attempt failed for a reason that may pass."""


@dataclass(slots=True, eq=False)
class _Call:
    address: tuple[str, int]
    identity: Identity
    party: str
    peer: str
    limits: Limits
    pins: Mapping[str, str]
    _life: bytes = b""
    _incarnation: int = 0
    _stopped: bool = False
    _trying: set[socket.socket] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _pool: BufferPool = field(default_factory=BufferPool)

    def first(self, timeout_s: float) -> Link:
        """One attempt. Raises `_PassingError`, `CredentialError`, `ChannelError`."""
        self._life = secrets.token_bytes(LIFE_BYTES)
        try:
            pair, _ = self._open(timeout_s)
        except FinalError as error:
            raise CredentialError(f"{self.peer} does not let {self.party} in: {error}") from error
        return Link(self.peer, self._life, pair, self.limits, redial=self)

    def again(self, received: int, timeout_s: float) -> tuple[Lanes, int]:
        """One attempt for a link that broke. Raises `FinalError`, `ChannelError`, `CredentialError`."""
        try:
            return self._open(timeout_s, resumes=True, received=received)
        except FinalError as error:
            raise FinalError(f"{self.peer} is gone from this link: {error}") from error

    def stop(self) -> None:
        """Ends an attempt that is being made, and all later ones."""
        with self._lock:
            self._stopped = True
            for connection in self._trying:
                wake(connection)

    def _open(self, timeout_s: float, *, resumes: bool = False, received: int = 0) -> tuple[Lanes, int]:
        try:
            return self._try(Deadline(min(self.limits.handshake_timeout_s, timeout_s)), resumes, received)
        except FrameRefused as error:
            raise ChannelError(
                f"whoever answers at {self.address[0]}:{self.address[1]} is no listener of ours ({error}); "
                "check the address and the port"
            ) from error
        except ssl.SSLError as error:
            if reason := why_refused(error, self.peer):
                raise CredentialError(reason) from error
            raise _PassingError("the connection broke off") from error
        except TimeoutError as error:
            raise _PassingError("no answer") from error
        except EOFError as error:
            raise _PassingError("the connection broke off") from error
        except OSError as error:
            raise _PassingError(error.strerror or str(error)) from error

    def _try(self, deadline: Deadline, resumes: bool, received: int) -> tuple[Lanes, int]:
        self.identity.renew()
        self._incarnation = max(self._incarnation + 1, time.time_ns())

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
        answer = hear_answer(connection, deadline)
        if answer.refusal and answer.passing:
            raise _PassingError(f"{self.peer} refused: {answer.refusal}")
        if answer.refusal:
            raise FinalError(answer.refusal)
        if answer.party != self.peer:
            raise CredentialError(f"{answer.party} answers at {self.address[0]}:{self.address[1]}, not {self.peer}")
        return answer


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
