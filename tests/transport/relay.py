"""A TCP relay between the two ends of a link, which cuts, corrupts or swallows what passes."""

import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress

Meddle = Callable[[bytes], bytes | None]
"""What becomes of a piece on its way: None ends its connection."""


def as_it_is(piece: bytes) -> bytes:
    return piece


class Wire:
    """One relayed connection."""

    def __init__(self, near: socket.socket, far: socket.socket, relay: "Relay") -> None:
        self._ends = (near, far)
        self.up: Meddle = relay.up
        self.down: Meddle = relay.down
        self._threads = [
            threading.Thread(target=self._pump, args=(near, far, lambda piece: self.up(piece)), daemon=True),
            threading.Thread(target=self._pump, args=(far, near, lambda piece: self.down(piece)), daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def cut(self, *, reset: bool = False) -> None:
        for end in self._ends:
            with suppress(OSError):
                if reset:
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    end.shutdown(socket.SHUT_RD)
                else:
                    end.shutdown(socket.SHUT_RDWR)

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def _pump(self, source: socket.socket, target: socket.socket, meddle: Meddle) -> None:
        with suppress(OSError):
            while piece := source.recv(65_536):
                if (passed := meddle(piece)) is None:
                    break
                target.sendall(passed)
        self.cut()
        if threading.current_thread() is self._threads[0]:
            self._threads[1].join()
            for end in self._ends:
                end.close()


class Relay:
    """Listens at `port`, passes everything on to `target`: `up` to the listener's end, `down` to the dialler's."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.up: Meddle = as_it_is
        self.down: Meddle = as_it_is
        self.wires: list[Wire] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def cut(self, *, reset: bool = False) -> None:
        """Ends all connections that there are."""
        for wire in self.wires:
            wire.cut(reset=reset)

    def swallow(self) -> None:
        """From now on nothing passes on the connections that there are, and nobody is told."""
        for wire in self.wires:
            wire.up = wire.down = lambda piece: b""

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()
        self.cut()
        for wire in self.wires:
            wire.join()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._socket.accept()
                try:
                    far = socket.create_connection(("127.0.0.1", self.target), 2.0)
                except OSError:
                    near.close()
                    continue
                far.settimeout(None)
                for end in (near, far):
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.wires = [*self.wires[-8:], Wire(near, far, self)]
