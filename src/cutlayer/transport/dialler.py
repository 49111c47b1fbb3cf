"""The end that dials: it opens both connections of a link, and tries again until it is let in or the time is over."""

import random
import socket
import ssl
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

from cutlayer.errors import ChannelError, ChannelTimeout, CredentialError, FrameRefused
from cutlayer.plan.limits import Limits
from cutlayer.transport.buffers import BufferPool
from cutlayer.transport.lanes import LanesChannel
from cutlayer.transport.opening import Deadline, Direction, Opening, hang_up, hear_answer, say
from cutlayer.transport.tls import KeyFiles, context_for, dialling_context, misfit, why_refused

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 5.0
SHORTEST_TRY_S = 0.1

_dice = random.SystemRandom()


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
) -> LanesChannel:
    """A link of `party` to the listener `peer` at `address` (host, port).

    Tries again, ever more slowly, until `give_up_after_s` (`limits.join_timeout_s` if None) is over, then raises
    `ChannelTimeout`. What another try cannot mend is raised at once: `CredentialError` if either end does not accept
    the other's certificate or name, `ChannelError` if whoever answers is no listener of cutlayer. `pins` are SHA-256
    digests (hex) of the parties' public keys, by party.
    """
    context = context_for(dialling_context, credentials, address[0], plaintext=insecure_plaintext_on_loopback)
    call = _Call(address, context, party, peer, limits, pins or {})
    patience_s = limits.join_timeout_s if give_up_after_s is None else give_up_after_s
    started, pause_s = time.monotonic(), FIRST_PAUSE_S
    while True:
        left_s = patience_s - (time.monotonic() - started)
        try:
            return call.open(Deadline(min(limits.handshake_timeout_s, max(left_s, SHORTEST_TRY_S))))
        except _PassingError as error:
            reason = str(error)
        left_s = patience_s - (time.monotonic() - started)
        if left_s <= SHORTEST_TRY_S:
            raise ChannelTimeout(
                f"{party} tried for {patience_s:g} s to reach {peer} at {address[0]}:{address[1]}; "
                f"the last attempt ended with: {reason}"
            )
        time.sleep(min(left_s / 2, pause_s * _dice.uniform(0.5, 1.0)))
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


class _PassingError(ChannelError):
    """This attempt failed for a reason that may pass."""


@dataclass(frozen=True, slots=True)
class _Call:
    address: tuple[str, int]
    context: ssl.SSLContext | None
    party: str
    peer: str
    limits: Limits
    pins: Mapping[str, str]

    def open(self, deadline: Deadline) -> LanesChannel:
        """One attempt. Raises `_PassingError`, `CredentialError`, `ChannelError`."""
        try:
            return self._open(deadline)
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

    def _open(self, deadline: Deadline) -> LanesChannel:
        incarnation = time.time_ns()
        with ExitStack() as undo:
            outgoing = self._lane("to-listener", incarnation, deadline, undo)
            incoming = self._lane("to-dialler", incarnation, deadline, undo)
            for connection in (outgoing, incoming):
                self._check_answer(connection, deadline)
            undo.pop_all()
        return LanesChannel(self.peer, outgoing, incoming, self.limits, BufferPool())

    def _lane(self, direction: Direction, incarnation: int, deadline: Deadline, undo: ExitStack) -> socket.socket:
        connection = self._connect(deadline)
        undo.callback(hang_up, connection)
        if isinstance(connection, ssl.SSLSocket):
            connection.settimeout(deadline.left_s())
            connection.do_handshake()
            if fault := misfit(connection.getpeercert(binary_form=True) or b"", self.peer, self.pins):
                raise CredentialError(f"whoever answers is not {self.peer}: {fault}; check the address and the plan")
        say(connection, Opening(self.party, direction, incarnation), deadline)
        return connection

    def _connect(self, deadline: Deadline) -> socket.socket:
        connection = socket.create_connection(self.address, deadline.left_s())
        try:
            _refuse_echo(connection)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.context is None:
                return connection
            return self.context.wrap_socket(connection, server_hostname=self.peer, do_handshake_on_connect=False)
        except BaseException:
            connection.close()
            raise

    def _check_answer(self, connection: socket.socket, deadline: Deadline) -> None:
        answer = hear_answer(connection, deadline)
        if answer.refusal and answer.passing:
            raise _PassingError(f"{self.peer} refused: {answer.refusal}")
        if answer.refusal:
            raise CredentialError(f"{self.peer} does not let {self.party} in: {answer.refusal}")
        if answer.party != self.peer:
            raise CredentialError(f"{answer.party} answers at {self.address[0]}:{self.address[1]}, not {self.peer}")


def _refuse_echo(connection: socket.socket) -> None:
    """TCP may connect a port that nobody listens on to itself."""
    if connection.getsockname() == connection.getpeername():
        raise ConnectionRefusedError("Connection refused")
