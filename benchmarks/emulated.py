"""A network that is worse than this machine's own: it stands between a dialler and a listener, and passes bytes on.

    python benchmarks/emulated.py --target HOST:PORT [--delay-ms 50] [--jitter-ms 10] [--rate-mbit 100] [--cut AT:FOR]

It listens on a free port of loopback, which it prints, until it is stopped. Delay and jitter are those of one way: a
round trip takes twice as long. The rate is shared by all connections, in each direction. The handshake of TCP itself
is not delayed: this end answers it. `calibrate.py` measures how well it keeps what it is asked for.
"""

import argparse
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from types import TracebackType

from passing import POLL_S, QUEUE_BYTES, RESET, Connection, Direction, Way

CONNECT_TIMEOUT_S = 5.0
JOIN_TIMEOUT_S = 5.0


class EmulatedLink:
    """Passes what comes to `port` on to `target` (host, port) and back, later and slower; and breaks when told.

    >>> with EmulatedLink(("127.0.0.1", 9), delay_ms=50, rate_mbit=100) as link:
    ...     link.cut(0.5)
    """

    def __init__(
        self, target: tuple[str, int], *, delay_ms: float = 0.0, jitter_ms: float = 0.0, rate_mbit: float = 0.0
    ) -> None:
        self._target = target
        self._ways: dict[Direction, Way] = {
            direction: Way(delay_ms / 1e3, jitter_ms / 1e3, rate_mbit * 1e6 / 8)
            for direction in ("to-target", "to-caller")
        }  # fmt: skip
        self._buffer_bytes = QUEUE_BYTES if rate_mbit else 0
        self._held_until = 0.0
        self._cut_until, self._swallowing_until = 0.0, 0.0
        self._cuts: list[bool] = []
        """Whether each cut so far was silent."""
        self._connections: set[Connection] = set()
        self._swallowed: list[socket.socket] = []
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._place = _bound(("127.0.0.1", 0))
        self.port: int = self._place.getsockname()[1]
        self._listening = self._listen()
        self._porter = threading.Thread(target=self._accept, daemon=True)
        self._porter.start()

    @property
    def connections(self) -> int:
        """How many pass through now."""
        with self._lock:
            return len(self._connections)

    def passed(self, direction: Direction) -> int:
        """Bytes that came in so far."""
        return self._ways[direction].passed

    # ------------------------------------------------------------------ what may befall it

    def cut(self, seconds: float, *, silently: bool = False) -> None:
        """End every connection at once, and let none come for so long; returns at once.

        Both ends see a reset, and whoever calls is refused. `silently` nobody is told: what is sent is swallowed, on
        the old connections for ever, and new ones are accepted and swallowed.
        """
        if silently:
            self._swallowing_until = time.monotonic() + seconds
        else:
            self._cut_until = time.monotonic() + seconds
            with suppress(OSError):
                self._listening.shutdown(socket.SHUT_RDWR)
        with self._lock:
            self._cuts.append(silently)
            connections = list(self._connections)
        for connection in connections:
            connection.cut(silently=silently)

    def half_open(self) -> None:
        """Swallow whatever either end of the present connections says from now on, and tell neither. New ones work."""
        self.cut(0.0, silently=True)

    def hold(self, seconds: float) -> None:
        """Keep back what comes for so long, and then deliver it: a break that TCP survives."""
        self._held_until = time.monotonic() + seconds

    def corrupt(self, direction: Direction, *, after_bytes: int = 0) -> None:
        """Change the one byte that follows so many others, counted over all connections from now on."""
        self._ways[direction].befall(after_bytes, "corrupt")

    def truncate(self, direction: Direction, *, after_bytes: int = 0) -> None:
        """Close a connection, in good order, when so many more bytes have passed; that byte itself does not pass."""
        self._ways[direction].befall(after_bytes, "truncate")

    # ------------------------------------------------------------------ connections

    def _forget(self, connection: Connection) -> None:
        with self._lock:
            self._connections.discard(connection)

    def _listen(self) -> socket.socket:
        listening = _bound(("127.0.0.1", self.port))
        if self._buffer_bytes:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._buffer_bytes)
        listening.listen(128)
        listening.settimeout(POLL_S)
        return listening

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                self._take(self._listening.accept()[0])
            except TimeoutError:
                continue
            except OSError:
                self._listening.close()
                while (left_s := self._cut_until - time.monotonic()) > 0 and not self._closed.wait(left_s):
                    pass
                self._listening = self._listen()

    def _take(self, caller: socket.socket) -> None:
        cuts = len(self._cuts)
        if time.monotonic() < self._swallowing_until:
            self._swallowed.append(caller)
            return
        try:
            target = self._connect()
        except OSError:
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            caller.close()
            return
        connection = Connection(caller, target, self._ways, held_until=lambda: self._held_until, forget=self._forget)
        with self._lock:
            self._connections.add(connection)
            missed = self._cuts[cuts:]
        for silently in missed:
            connection.cut(silently=silently)
        if time.monotonic() < self._cut_until:
            connection.cut(silently=False)
        connection.start()

    def _connect(self) -> socket.socket:
        target = socket.socket(socket.AF_INET6 if ":" in self._target[0] else socket.AF_INET)
        try:
            if self._buffer_bytes:
                target.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._buffer_bytes)
            target.settimeout(CONNECT_TIMEOUT_S)
            target.connect(self._target)
        except BaseException:
            target.close()
            raise
        return target

    def close(self) -> None:
        """End every connection and stop listening. Idempotent."""
        self._closed.set()
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._porter.join(JOIN_TIMEOUT_S)
        self._listening.close()
        deadline = time.monotonic() + JOIN_TIMEOUT_S
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            connection.end("close")
        for connection in connections:
            connection.join(deadline)
        for swallowed in self._swallowed:
            swallowed.close()
        self._place.close()

    def __enter__(self) -> "EmulatedLink":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _bound(address: tuple[str, int]) -> socket.socket:
    """A socket with a place that no other program gets. Several of ours may have the same."""
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind(address)
    return bound


# ---------------------------------------------------------------------- the command


def address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host.strip("[]") or "127.0.0.1", int(port)


def moment(text: str) -> tuple[float, float]:
    at, _, seconds = text.partition(":")
    return float(at), float(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=address, required=True, help="HOST:PORT to pass everything on to")
    parser.add_argument("--delay-ms", type=float, default=0.0, help="of one way")
    parser.add_argument("--jitter-ms", type=float, default=0.0, help="how much more or less the delay may be")
    parser.add_argument("--rate-mbit", type=float, default=0.0, help="of each direction (default: no limit)")
    parser.add_argument(
        "--cut", type=moment, action="append", default=[], metavar="AT:FOR", help="cut it AT seconds after the start"
    )
    parser.add_argument("--silently", action="store_true", help="cuts tell nobody")
    args = parser.parse_args()
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    shape = {"delay_ms": args.delay_ms, "jitter_ms": args.jitter_ms, "rate_mbit": args.rate_mbit}
    with EmulatedLink(args.target, **shape) as link:
        print(f"port {link.port}", flush=True)
        start = time.monotonic()
        for at, seconds in sorted(args.cut):
            if stopped.wait(max(0.0, start + at - time.monotonic())):
                break
            link.cut(seconds, silently=args.silently)
            print(f"cut for {seconds:g} s", file=sys.stderr, flush=True)
        stopped.wait()


if __name__ == "__main__":
    main()
