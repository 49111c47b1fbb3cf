"""Who knocks without being a party: each is turned away with a reason, and none keeps the others waiting."""

import socket
import ssl
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from cutlayer.errors import ChannelTimeout
from cutlayer.keys import load_credentials
from cutlayer.plan.limits import Limits
from cutlayer.protocol.wire import MAGIC
from cutlayer.transport import Listener, Refusal, dial

Listen = Callable[..., Listener]


def knock(listener: Listener, said: bytes = b"") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", listener.port), 2.0)
    connection.sendall(said)
    return connection


def first_refusal(listener: Listener) -> Refusal:
    for _ in range(300):
        if listener.refused:
            break
        time.sleep(0.01)
    return listener.refused[0]


def test_a_plain_text_client_is_turned_away(listen: Listen) -> None:
    listener = listen()
    with knock(listener, b"GET / HTTP/1.1\r\nHost: lab\r\n\r\n") as web:
        refusal = first_refusal(listener)
        assert refusal.reason == "it does not speak TLS"
        assert refusal.address == "{}:{}".format(*web.getsockname())


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_client_without_a_certificate_is_turned_away(listen: Listen, kit: Path, version: ssl.TLSVersion) -> None:
    listener = listen()
    context = ssl.create_default_context(cafile=kit / "ca.crt")
    context.minimum_version = context.maximum_version = version
    with knock(listener) as plain, suppress(ssl.SSLError), context.wrap_socket(plain, server_hostname="lab") as nobody:
        nobody.recv(1)
    assert first_refusal(listener).reason == "it showed no certificate"


def test_what_is_no_opening_is_turned_away(listen: Listen, kit: Path) -> None:
    listener = listen()
    credentials = load_credentials(kit, "hospital-a")
    context = ssl.create_default_context(cafile=credentials.authority)
    context.load_cert_chain(credentials.certificate, credentials.key)
    with knock(listener) as plain, context.wrap_socket(plain, server_hostname="lab") as caller:
        caller.sendall(MAGIC + (3000).to_bytes(4, "big") + bytes(24))
        assert first_refusal(listener).reason.endswith("header of 3,000 bytes; the limit is 1,024")


def test_who_stalls_delays_nobody_and_is_turned_away(listen: Listen, kit: Path, limits: Limits) -> None:
    listener = listen()
    stalled = [knock(listener) for _ in range(5)]
    started = time.monotonic()
    credentials = load_credentials(kit, "hospital-a")
    client = dial(("127.0.0.1", listener.port), credentials, party="hospital-a", peer="lab", limits=limits)
    with closing(client), closing(listener.accept(2.0)) as channel:
        assert channel.peer == "hospital-a"
    assert time.monotonic() - started < 1.0
    assert first_refusal(listener).reason == "it did not open a link within 1 s"
    for connection in stalled:
        connection.close()


def test_no_more_strangers_wait_than_the_limit_says(listen: Listen, limits: Limits) -> None:
    listener = listen(limits=replace(limits, connections=3))
    waiting = [knock(listener) for _ in range(4)]
    assert "3 other connections" in first_refusal(listener).reason
    assert waiting[-1].recv(1) == b""
    for connection in waiting:
        connection.close()


def test_closing_the_listener_ends_who_is_still_waiting(listen: Listen) -> None:
    listener = listen()
    with knock(listener) as stalled:
        time.sleep(0.1)
        started = time.monotonic()
        listener.close()
        assert time.monotonic() - started < 1.0
        with suppress(ConnectionResetError):
            assert stalled.recv(1) == b""


def test_nobody_comes(listen: Listen) -> None:
    with pytest.raises(ChannelTimeout, match=r"no party came to lab within 0\.1 s"):
        listen().accept(0.1)


def test_refusals_are_told_as_they_happen(kit: Path, limits: Limits) -> None:
    told: list[Refusal] = []
    credentials = load_credentials(kit, "lab")
    listener = Listener(("127.0.0.1", 0), credentials, party="lab", allowed=[], limits=limits, on_refused=told.append)
    with closing(listener), knock(listener, b"hello, is anybody there?"):
        refusal = first_refusal(listener)
    assert told == [refusal]
