"""A link over two TLS connections: how it begins, how it breaks, how it is replaced."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import pytest

from cutlayer.errors import ChannelClosed, ChannelError, ChannelTimeout, FrameRefused
from cutlayer.keys import load_credentials, make_request, sign_request
from cutlayer.plan.limits import Limits
from cutlayer.protocol.wire import MAGIC, Frame
from cutlayer.transport import Channel, Listener, dial
from cutlayer.transport.opening import Deadline, Direction, Opening, hang_up, hear_answer, say
from cutlayer.transport.tls import dialling_context

LIFE = bytes(16)

Listen = Callable[..., Listener]
Call = Callable[[Listener], Channel]


@pytest.fixture
def call(kit: Path, limits: Limits) -> Iterator[Call]:
    """Dials as hospital-a."""
    with ExitStack() as opened:

        def start(listener: Listener) -> Channel:
            address, credentials = ("127.0.0.1", listener.port), load_credentials(kit, "hospital-a")
            channel = dial(address, credentials, party="hospital-a", peer="lab", limits=limits)
            return opened.enter_context(closing(channel))

        yield start


class RawCaller:
    """hospital-a without our dialler: TLS connections on which a test writes what it likes."""

    def __init__(self, listener: Listener, kit: Path, party: str = "hospital-a") -> None:
        self._address = ("127.0.0.1", listener.port)
        self._context = dialling_context(load_credentials(kit, party))
        self._party = party
        self._opened: list[socket.socket] = []

    def connect(self) -> socket.socket:
        plain = socket.create_connection(self._address, 2.0)
        connection = self._context.wrap_socket(plain, server_hostname="lab")
        self._opened.append(connection)
        return connection

    def open(self, direction: Direction, incarnation: int = 1) -> socket.socket:
        connection = self.connect()
        say(connection, Opening(self._party, direction, incarnation, LIFE), Deadline(2.0))
        return connection

    def open_link(self, incarnation: int = 1) -> socket.socket:
        """Both lanes; returns the one on which the listener receives."""
        outgoing, incoming = self.open("to-listener", incarnation), self.open("to-dialler", incarnation)
        for connection in (outgoing, incoming):
            assert hear_answer(connection, Deadline(2.0)).refusal == ""
        return outgoing

    def close(self) -> None:
        for connection in self._opened:
            hang_up(connection)


@pytest.fixture
def raw(kit: Path) -> Iterator[Callable[..., RawCaller]]:
    with ExitStack() as opened:

        def start(listener: Listener, party: str = "hospital-a") -> RawCaller:
            return opened.enter_context(closing(RawCaller(listener, kit, party)))

        yield start


@pytest.fixture
def received(listen: Listen, raw: Callable[[Listener], RawCaller]) -> Iterator[tuple[socket.socket, Channel]]:
    """A raw sending lane and the lab's channel at its other end."""
    listener = listen()
    lane = raw(listener).open_link()
    with closing(listener.accept(2.0)) as channel:
        yield lane, channel


def test_garbage_is_refused(received: tuple[socket.socket, Channel]) -> None:
    lane, channel = received
    lane.sendall(b"GET / HTTP/1.1\r\nHost: lab.example.org\r\n\r\n")
    with pytest.raises(FrameRefused, match="no frame"):
        channel.receive(1000)


def test_an_announced_body_over_the_limit_is_refused_before_it_is_sent(
    received: tuple[socket.socket, Channel],
) -> None:
    lane, channel = received
    lane.sendall(MAGIC + (0).to_bytes(4, "big") + (2**63).to_bytes(8, "big") + bytes(16))
    with pytest.raises(FrameRefused, match="9,223,372,036,854,775,808"):
        channel.receive(10**9)


@pytest.mark.parametrize("sent", [5, 40, 50])
def test_half_a_frame_and_then_silence_is_a_timeout(received: tuple[socket.socket, Channel], sent: int) -> None:
    lane, channel = received
    frame = Frame(b"0123456789", (memoryview(bytes(100_000)),))
    lane.sendall((frame.prelude(1) + frame.header + bytes(100_000))[:sent])
    started = time.monotonic()
    with pytest.raises(ChannelTimeout, match=r"hospital-a was silent for 0\.5 s in the middle of a frame"):
        channel.receive(10**6)
    assert time.monotonic() - started < 1.5


def test_half_a_frame_and_then_the_end_is_no_frame(received: tuple[socket.socket, Channel]) -> None:
    lane, channel = received
    lane.sendall(Frame(b"0123456789", (memoryview(bytes(1000)),)).prelude(1) + b"01234")
    hang_up(lane)
    with pytest.raises(ChannelClosed, match="hospital-a is gone in the middle of a frame"):
        channel.receive(10**6)


def test_a_frame_that_comes_too_early_breaks_the_connection(received: tuple[socket.socket, Channel]) -> None:
    lane, channel = received
    lane.sendall(Frame(b"two").prelude(2) + b"two")
    with pytest.raises(ChannelClosed, match="a frame of hospital-a was lost on the way, and the link did not stand"):
        channel.receive(0)


def test_a_frame_without_a_number_is_refused(received: tuple[socket.socket, Channel]) -> None:
    lane, channel = received
    lane.sendall(Frame(b"what").prelude() + b"what")
    with pytest.raises(FrameRefused, match="hospital-a sent a frame without a number"):
        channel.receive(0)


def test_who_acknowledges_what_was_never_sent_is_refused(received: tuple[socket.socket, Channel]) -> None:
    lane, channel = received
    lane.sendall(Frame(b"x").prelude(1, 7) + b"x")
    with pytest.raises(FrameRefused, match="acknowledged frame 7, and 0 were sent"):
        channel.receive(0)


def flood(lane: socket.socket) -> int:
    """Writes tiny frames, a million at most, until they are taken no longer; returns how many."""
    lane.settimeout(0.3)
    for number in range(1, 1_000_000, 1000):
        try:
            lane.sendall(b"".join(Frame(b"x").prelude(each) + b"x" for each in range(number, number + 1000)))
        except TimeoutError:
            return number
    return 1_000_000


@pytest.mark.parametrize("how", ["a gigabyte", "a flood", "half a frame"])
def test_a_party_that_misbehaves_disturbs_no_other(
    listen: Listen, raw: Callable[[Listener, str], RawCaller], call: Call, how: str
) -> None:
    listener = listen()
    lane = raw(listener, "hospital-b").open_link()
    with closing(listener.accept(2.0)) as wild:
        before = resident()
        if how == "a gigabyte":
            lane.sendall(Frame(b"").prelude(1)[:8] + (2**30).to_bytes(8, "big") + bytes(16))
            with pytest.raises(FrameRefused, match="1,073,741,824"):
                wild.receive(10**6)
        elif how == "a flood":
            assert flood(lane) < 1_000_000
        else:
            lane.sendall(Frame(b"0123456789").prelude(1)[:20])
        client = call(listener)
        with closing(listener.accept(2.0)) as server, ThreadPoolExecutor(1) as executor:
            stuck = executor.submit(wild.receive, 0)
            for number in range(100):
                client.send(Frame(b"%d" % number, (memoryview(bytes(10_000)),)))
                assert server.receive(10_000).header == b"%d" % number
            wild.close()
            stuck.exception(2.0)
        assert resident() - before < 32 * 2**20


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def test_a_frame_that_comes_byte_by_byte_is_a_frame(received: tuple[socket.socket, Channel]) -> None:
    lane, channel = received
    frame = Frame(b"0123456789", (memoryview(b"abc"),))
    for byte in frame.prelude(1) + b"0123456789abc":
        lane.sendall(bytes([byte]))
    got = channel.receive(3)
    assert (got.header, bytes(got.parts[0])) == (b"0123456789", b"abc")


def test_many_frames_in_one_record_are_told_apart(received: tuple[socket.socket, Channel]) -> None:
    lane, channel = received
    frames = [Frame(b"%d" % number, (memoryview(bytes([number]) * number),)) for number in range(100)]
    lane.sendall(
        b"".join(frame.prelude(number) + frame.header + bytes(frame.parts[0]) for number, frame in enumerate(frames, 1))
    )
    for frame in frames:
        got = channel.receive(100)
        assert (got.header, bytes(got.parts[0])) == (frame.header, bytes(frame.parts[0]))


def test_a_frame_that_cannot_be_written_whole_is_refused_and_the_link_goes_on(listen: Listen, call: Call) -> None:
    listener = listen()
    client = call(listener)
    with closing(listener.accept(2.0)) as server:
        scattered = memoryview(bytes(400_000))[::2]
        with pytest.raises(ValueError, match="must be contiguous"):
            client.send(Frame(b"x", (scattered,)))
        client.send(Frame(b"y"))
        assert server.receive(10**6).header == b"y"


def test_a_link_is_two_connections_and_peers_are_certified(listen: Listen, call: Call) -> None:
    listener = listen()
    client = call(listener)
    with closing(listener.accept(2.0)) as server:
        assert (client.peer, server.peer) == ("lab", "hospital-a")
        assert listener.refused == ()


def test_a_frozen_party_is_silent(listen: Listen, kit: Path, limits: Limits) -> None:
    listener = listen()
    script = (
        "import sys, time; from pathlib import Path; from cutlayer.keys import load_credentials;"
        "from cutlayer.plan.limits import Limits; from cutlayer.transport import dial;"
        "kit, port = Path(sys.argv[1]), int(sys.argv[2]); credentials = load_credentials(kit, 'hospital-a');"
        "link = dial(('127.0.0.1', port), credentials, party='hospital-a', peer='lab',"
        f" limits=Limits(silence_timeout_s={limits.silence_timeout_s})); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(kit), str(listener.port)])
    try:
        with closing(listener.accept(30.0)) as channel:
            os.kill(process.pid, signal.SIGSTOP)
            started = time.monotonic()
            with pytest.raises(ChannelTimeout, match=r"hospital-a was silent for 0\.5 s, and the link did not stand"):
                channel.receive(0)
            assert time.monotonic() - started < limits.silence_timeout_s + limits.reconnect_timeout_s + 1.0
    finally:
        process.kill()
        process.wait()


def test_a_party_that_dies_is_noticed_at_once(
    listen: Listen, raw: Callable[[Listener], RawCaller], limits: Limits
) -> None:
    listener = listen(limits=replace(limits, reconnect_timeout_s=0.0))
    caller = raw(listener)
    caller.open_link()
    with closing(listener.accept(2.0)) as channel:
        caller.close()
        started = time.monotonic()
        with pytest.raises(ChannelClosed, match="hospital-a is gone"):
            channel.receive(0)
        assert time.monotonic() - started < 0.4


def test_lanes_of_different_incarnations_are_not_paired(
    listen: Listen, raw: Callable[[Listener], RawCaller], limits: Limits
) -> None:
    listener = listen()
    caller = raw(listener)
    lanes = [caller.open("to-listener", 1), caller.open("to-dialler", 2)]
    with pytest.raises(ChannelTimeout, match="no party came"):
        listener.accept(0.3)
    answers = [hear_answer(lane, Deadline(2 * limits.handshake_timeout_s)) for lane in lanes]
    assert [answer.refusal for answer in answers] == ["it opened one direction and never the other"] * 2


def test_lanes_of_different_certificates_are_not_paired(listen: Listen, kit: Path, tmp_path: Path) -> None:
    sign_request(make_request(tmp_path, "hospital-a"), kit / "authority")
    listener = listen()
    with closing(RawCaller(listener, kit)) as first, closing(RawCaller(listener, tmp_path)) as second:
        first.open("to-listener")
        second.open("to-dialler")
        with pytest.raises(ChannelTimeout):
            listener.accept(0.3)


def test_the_same_direction_twice_is_refused(listen: Listen, raw: Callable[[Listener], RawCaller]) -> None:
    listener = listen()
    caller = raw(listener)
    caller.open("to-listener")
    time.sleep(0.1)
    assert hear_answer(caller.open("to-listener"), Deadline(2.0)).refusal == "it opened the same direction twice"


def test_a_newer_incarnation_replaces_the_older_link(listen: Listen, call: Call) -> None:
    listener = listen()
    old_client = call(listener)
    old = listener.accept(2.0)
    new_client = call(listener)
    with closing(old), closing(listener.accept(2.0)) as new:
        with pytest.raises(ChannelClosed, match="hospital-a opened a newer link"):
            old.receive(0)
        with pytest.raises(ChannelClosed, match="lab is gone"):
            old_client.receive(0)
        new_client.send(Frame(b"still here"))
        assert new.receive(0).header == b"still here"


def test_an_older_incarnation_is_refused_while_the_newer_lives(
    listen: Listen, raw: Callable[[Listener], RawCaller]
) -> None:
    listener = listen()
    caller = raw(listener)
    caller.open_link(incarnation=7)
    with closing(listener.accept(2.0)):
        lanes = [caller.open("to-listener", 6), caller.open("to-dialler", 6)]
        for lane in lanes:
            answer = hear_answer(lane, Deadline(2.0))
            assert (answer.refusal, answer.passing) == ("a newer link of this party is already open", True)
    caller.open_link(incarnation=6)
    listener.accept(2.0).close()


def test_an_accepted_link_outlives_its_listener(listen: Listen, call: Call) -> None:
    listener = listen()
    client = call(listener)
    with closing(listener.accept(2.0)) as server:
        listener.close()
        client.send(Frame(b"x"))
        assert server.receive(0).header == b"x"


def test_a_closed_listener_says_so_and_ends_links_nobody_accepted(listen: Listen, call: Call) -> None:
    listener = listen()
    client = call(listener)
    listener.close()
    listener.close()
    with pytest.raises(ChannelClosed, match="lab is gone"):
        client.receive(0)
    with pytest.raises(ChannelClosed, match="lab's listener was closed"):
        listener.accept()


def test_a_port_in_use_is_named(listen: Listen) -> None:
    listener = listen()
    with pytest.raises(ChannelError, match=rf"port {listener.port} of 127\.0\.0\.1 is in use already; stop the"):
        listen(port=listener.port)


def test_an_address_of_another_machine_cannot_be_listened_at(kit: Path, limits: Limits) -> None:
    credentials = load_credentials(kit, "lab")
    with pytest.raises(ChannelError, match=r"cannot listen at 192\.0\.2\.1:0"):
        Listener(("192.0.2.1", 0), credentials, party="lab", allowed=[], limits=limits)
