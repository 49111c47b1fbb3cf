"""Ends a connection of a Flight server from its own side, which Flight itself cannot.

A thread that reads a stream sleeps until the other end, or the connection, ends it; a peer that is frozen ends nothing.
The connection's descriptor is found by both of its addresses, and ended below TLS.
"""

import os
import socket
from contextlib import closing, suppress
from urllib.parse import unquote

DESCRIPTORS = "/dev/fd"


def cut(peer: str, port: int) -> None:
    """Ends this process' connection to `peer`, as gRPC writes it (`ipv4:10.0.0.7:51234`), at its own `port`.

    Does nothing where the system lists no descriptors (Windows).
    """
    _, _, address = unquote(peer).partition(":")
    host, _, far_port = address.rpartition(":")
    wanted = host.strip("[]"), int(far_port) if far_port.isdigit() else -1
    with suppress(OSError):
        for name in os.listdir(DESCRIPTORS):
            if name.isdigit():
                _cut(int(name), wanted, port)


def _cut(descriptor: int, peer: tuple[str, int], port: int) -> None:
    """Of a copy of the descriptor, so that it is still the one that was looked at when it is ended."""
    with suppress(OSError):
        copy = os.dup(descriptor)
        try:
            connection = socket.socket(fileno=copy)
        except OSError:  # a file, say
            os.close(copy)
            return
        with closing(connection):
            if connection.getsockname()[1:2] == (port,) and _plain(connection.getpeername()) == peer:
                connection.shutdown(socket.SHUT_RDWR)


def _plain(name: tuple[str, int]) -> tuple[str, int]:
    """An IPv4 address as such, though it came to a socket for IPv6."""
    return name[0].removeprefix("::ffff:"), name[1]
