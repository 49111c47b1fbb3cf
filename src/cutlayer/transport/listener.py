"""The end that listens: it hands out links only to parties of the plan, each proven by its certificate.

Every connection is received in a thread of its own, so that a stranger who stalls delays nobody.
"""

import errno
import socket
import ssl
import threading
from collections import deque
from collections.abc import Callable, Container, Mapping
from contextlib import suppress
from dataclasses import dataclass

from cutlayer.errors import ChannelError, CredentialError, FrameRefused
from cutlayer.plan.limits import Limits
from cutlayer.transport.identity import Identity
from cutlayer.transport.link import Link
from cutlayer.transport.meeting import Half, Meeting, UnwelcomeError
from cutlayer.transport.opening import Answer, Deadline, hang_up, hear_opening, part, say, wake
from cutlayer.transport.tls import KeyFiles, listening_context, misfit, what_failed

REMEMBERED_REFUSALS = 256
ACCEPT_POLL_S = 0.5
ACCEPT_PAUSE_S = 0.05
ANSWER_S = 1.0
BACKLOG = 128
SENTENCE = 1000


@dataclass(frozen=True, slots=True)
class Refusal:
    """A connection that did not become part of a link: where it came from, and why."""

    address: str
    reason: str


class Listener:
    """Waits at `address` (host, port; port 0 takes a free one) for the parties in `allowed`.

    `allowed` may change while the listener runs, and is asked for every connection: also for one that takes a broken
    link up again. `pins` are SHA-256 digests (hex) of the parties' public keys, by party. The key files are read again
    when they have changed. `on_refused`, and `on_trouble` with a sentence of what befalls a link, are called from
    threads of the listener's. Raises `ChannelError` if it cannot listen there, `CredentialError` if the key files do
    not serve.
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
        self._identity = Identity(listening_context, credentials, address[0], plaintext=insecure_plaintext_on_loopback)
        self._party, self._allowed, self._pins, self._limits = party, allowed, pins or {}, limits
        self._on_refused = on_refused
        self._refused: deque[Refusal] = deque(maxlen=REMEMBERED_REFUSALS)
        self._meeting = Meeting(party, limits, release=self._release, on_trouble=self._tell)
        self._lock = threading.Lock()
        self._pending: set[socket.socket] = set()
        self._threads: set[threading.Thread] = set()
        self._closed = threading.Event()
        self._socket = _listen(address)
        self.port: int = self._socket.getsockname()[1]
        self._porter = threading.Thread(target=self._accept_connections, daemon=True, name="cutlayer-listener")
        self._porter.start()

    @property
    def refused(self) -> tuple[Refusal, ...]:
        """Who was not let in, the oldest first; the last 256 of them."""
        return tuple(self._refused)

    def accept(self, timeout_s: float | None = None) -> Link:
        """The next party's link, complete and proven; `peer` says whose. Waits without end if `timeout_s` is None.

        Raises `ChannelTimeout` if nobody came, `ChannelClosed` if this listener was closed.
        """
        return self._meeting.next_link(timeout_s)

    def cut_off(self, party: str, reason: str) -> None:
        """Ends the party's link at once and tells it why; who is no longer `allowed` cannot come again."""
        self._meeting.cut_off(party, reason)

    def close(self) -> None:
        """Stops listening and ends what was not accepted yet; accepted links stay with their owner, and last
        as long as their connections. Idempotent."""
        self._closed.set()
        wake(self._socket)
        self._porter.join()
        self._socket.close()
        self._meeting.close()
        with self._lock:
            threads = self._threads - {threading.current_thread()}
            for connection in self._pending:
                wake(connection)
        for thread in threads:
            thread.join()

    def _accept_connections(self) -> None:
        while not self._closed.is_set():
            try:
                connection, address = self._socket.accept()
            except TimeoutError:
                continue
            except OSError:
                self._closed.wait(ACCEPT_PAUSE_S)  # out of file descriptors, or closing
                continue
            self._receive(connection, f"{address[0]}:{address[1]}")

    def _receive(self, connection: socket.socket, address: str) -> None:
        with self._lock:
            crowded = len(self._pending) >= self._limits.connections
        if crowded:
            hang_up(connection)
            self._note(address, f"{self._limits.connections} other connections have not said yet whose they are")
            return
        self._renew()
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._identity.context:
                connection = self._identity.context.wrap_socket(
                    connection, server_side=True, do_handshake_on_connect=False
                )
        except (OSError, ValueError):
            hang_up(connection)
            self._note(address, "it hung up")
            return
        thread = threading.Thread(
            target=self._hear, args=(connection, address), daemon=True, name=f"cutlayer-caller-{address}"
        )
        with self._lock:
            self._pending.add(connection)
            self._threads.add(thread)
        thread.start()

    def _renew(self) -> None:
        try:
            self._identity.renew()
        except CredentialError as error:  # in the middle of a renewal, say
            self._tell(f"{self._party} goes on with its older certificate: {error}")

    def _tell(self, sentence: str) -> None:
        self.on_trouble(sentence)

    def _hear(self, connection: socket.socket, address: str) -> None:
        deadline = Deadline(self._limits.handshake_timeout_s)
        try:
            self._meeting.join(self._identify(connection, deadline), deadline)
        except UnwelcomeError as error:
            with suppress(OSError):
                say(connection, Answer(self._party, str(error)[:SENTENCE], error.passing), Deadline(ANSWER_S))
            self._turn_away(connection, address, str(error))
        except ssl.SSLError as error:
            self._turn_away(connection, address, what_failed(error))
        except TimeoutError:
            self._turn_away(
                connection, address, f"it did not open a link within {self._limits.handshake_timeout_s:g} s"
            )
        except FrameRefused as error:
            self._turn_away(connection, address, str(error))
        except (OSError, EOFError, ValueError):
            self._turn_away(connection, address, "it hung up")
        finally:
            with self._lock:
                self._pending.discard(connection)
                self._threads.discard(threading.current_thread())

    def _identify(self, connection: socket.socket, deadline: Deadline) -> Half:
        certificate = b""
        if isinstance(connection, ssl.SSLSocket):
            connection.settimeout(deadline.left_s())
            connection.do_handshake()
            certificate = connection.getpeercert(binary_form=True) or b""
        opening = hear_opening(connection, deadline)
        if opening.party not in self._allowed or not (opening.resumes or opening.party in self.newcomers):
            raise UnwelcomeError(f"{opening.party!r} is none of the parties that {self._party} waits for")
        if self._identity.context and (fault := misfit(certificate, opening.party, self._pins)):
            raise UnwelcomeError(fault)
        return Half(connection, opening, certificate)

    def _turn_away(self, connection: socket.socket, address: str, reason: str) -> None:
        self._note(address, reason)
        part(connection)

    def _note(self, address: str, reason: str) -> None:
        refusal = Refusal(address, reason)
        self._refused.append(refusal)
        if self._on_refused:
            self._on_refused(refusal)

    def _release(self, connection: socket.socket) -> None:
        with self._lock:
            self._pending.discard(connection)


def _listen(address: tuple[str, int]) -> socket.socket:
    host, port = address
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server(address, family=family, backlog=BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ChannelError(
                f"port {port} of {host} is in use already; stop the program that listens there or take another port"
            ) from error
        raise ChannelError(f"cannot listen at {host}:{port}: {error.strerror or error}") from error
    listening.settimeout(ACCEPT_POLL_S)  # where a shutdown does not wake `accept`, this does
    return listening
