"""The emulated link keeps what it is asked for, breaks as it is told, and leaves nothing behind."""

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))

from emulated import EmulatedLink  # noqa: E402 (benchmarks are no package)
from passing import Direction  # noqa: E402

LONG_S = 10.0
LATE_S = 3.0
SHORT_S = 0.2
LOOPBACK = "127.0.0.1"


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server((LOOPBACK, 0)) as server:
        server.settimeout(LONG_S)
        yield server


Ends = tuple[socket.socket, socket.socket]
Open = Callable[..., tuple[EmulatedLink, Callable[[], Ends]]]


@pytest.fixture
def opened(listening: socket.socket) -> Iterator[Open]:
    """Starts links; each comes with a way to open connections. At the end no thread and no open socket is left."""
    threads = set(threading.enumerate())
    files = _files()
    links: list[EmulatedLink] = []
    sockets: list[socket.socket] = []

    def start(**shape: float) -> tuple[EmulatedLink, Callable[[], Ends]]:
        link = EmulatedLink(listening.getsockname(), **shape)
        links.append(link)

        def connect() -> Ends:
            caller = _called(link)
            sockets.append(caller)
            target, _ = listening.accept()
            target.settimeout(LONG_S)
            target.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sockets.append(target)
            return caller, target

        return link, connect

    yield start
    for link in links:
        link.close()
        link.close()
        assert link.connections == 0
    for each in sockets:
        each.close()
    assert set(threading.enumerate()) == threads
    assert _files() <= files


def _files() -> int:
    return len(list(Path("/proc/self/fd").iterdir())) if sys.platform == "linux" else 0


def _called(link: EmulatedLink) -> socket.socket:
    caller = socket.create_connection((LOOPBACK, link.port), LONG_S)
    caller.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return caller


def _is_refused(link: EmulatedLink) -> bool:
    try:
        _called(link).close()
    except (ConnectionRefusedError, ConnectionResetError):
        return True
    return False


def _exactly(connection: socket.socket, nbytes: int) -> bytes:
    data = b""
    while len(data) < nbytes:
        piece = connection.recv(nbytes - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


def _silent(connection: socket.socket) -> bool:
    """Whether nothing comes, not even the end."""
    connection.settimeout(SHORT_S)
    try:
        connection.recv(1)
    except TimeoutError:
        return True
    finally:
        connection.settimeout(LONG_S)
    return False


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONG_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _pattern(nbytes: int) -> bytes:
    return bytes(number * number >> 8 & 0xFF for number in range(1 << 16)) * (nbytes // (1 << 16) + 1)


# ---------------------------------------------------------------------- what is asked for


@pytest.mark.parametrize(("delay_ms", "jitter_ms"), [(20.0, 0.0), (20.0, 10.0)])
def test_a_byte_takes_the_delay_in_either_direction(opened: Open, delay_ms: float, jitter_ms: float) -> None:
    """The least is told: a busy machine makes some later."""
    _, connect = opened(delay_ms=delay_ms, jitter_ms=jitter_ms)
    ends = connect()
    for sender, receiver in (ends, ends[::-1]):
        took = []
        for _ in range(20):
            start = time.perf_counter()
            sender.sendall(b"x")
            receiver.recv(1)
            took.append(1e3 * (time.perf_counter() - start))
        assert delay_ms - jitter_ms - 1.5 < min(took) < delay_ms - 0.3 * jitter_ms + 2.0
        assert max(took) > delay_ms + 0.3 * jitter_ms - 1.5


@pytest.mark.parametrize("direction", ["to-target", "to-caller"])
def test_connections_share_the_rate_of_a_direction(opened: Open, direction: Direction) -> None:
    """The best of three: a busy machine makes it slower, nothing makes it faster."""
    _, connect = opened(rate_mbit=80)
    pairs = [connect() for _ in range(2)]
    pairs = [ends if direction == "to-target" else ends[::-1] for ends in pairs]
    assert 0.8 < max(_mbit(pairs, 2_000_000) for _ in range(3)) / 80 < 1.05


def _mbit(pairs: list[Ends], nbytes: int) -> float:
    threads = [threading.Thread(target=sender.sendall, args=(bytes(nbytes),)) for sender, _ in pairs]
    threads += [threading.Thread(target=_exactly, args=(receiver, nbytes)) for _, receiver in pairs]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG_S)
    return len(pairs) * nbytes * 8e-6 / (time.perf_counter() - start)


def test_jitter_changes_no_order(opened: Open) -> None:
    _, connect = opened(delay_ms=3, jitter_ms=3)
    caller, target = connect()
    said = [number.to_bytes(2) for number in range(300)]
    for each in said:
        caller.sendall(each)
        time.sleep(0.0002)
    assert _exactly(target, 600) == b"".join(said)


def test_all_bytes_arrive_as_they_were_and_then_the_end(opened: Open) -> None:
    link, connect = opened()
    caller, target = connect()
    said = _pattern(5_000_000)

    def say() -> None:
        caller.sendall(said)
        caller.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=say)
    sender.start()
    assert _exactly(target, len(said)) == said
    assert target.recv(1) == b""
    sender.join(LONG_S)
    assert link.passed("to-target") == len(said)
    target.sendall(b"the other direction is open still")
    target.close()
    assert _exactly(caller, 33) == b"the other direction is open still"
    assert caller.recv(1) == b""
    _until(lambda: link.connections == 0)


def test_who_takes_nothing_holds_who_sends(opened: Open) -> None:
    _, connect = opened(rate_mbit=8, delay_ms=10)
    caller, _ = connect()
    caller.settimeout(SHORT_S)
    with pytest.raises(TimeoutError):
        caller.sendall(bytes(50_000_000))


# ---------------------------------------------------------------------- what befalls it


def test_a_cut_resets_all_and_refuses_new_ones_for_a_while(opened: Open, listening: socket.socket) -> None:
    link, connect = opened(delay_ms=1)
    pairs = [connect() for _ in range(2)]
    start = time.monotonic()
    link.cut(0.4)
    for ends in pairs:
        for end in ends:
            with pytest.raises(ConnectionResetError):
                end.recv(1)
    refused = 0
    while _is_refused(link):
        refused += 1
        time.sleep(0.02)
    assert refused
    assert 0.4 <= time.monotonic() - start < LATE_S
    listening.accept()[0].close()
    caller, target = connect()
    caller.sendall(b"again")
    assert _exactly(target, 5) == b"again"


def test_a_silent_cut_tells_nobody_and_new_connections_are_swallowed(opened: Open, listening: socket.socket) -> None:
    link, connect = opened()
    old = connect()
    over = time.monotonic() + 1.0
    link.cut(1.0, silently=True)
    with closing(_called(link)) as swallowed:
        swallowed.sendall(b"hello?")
        for end in old:
            end.sendall(b"still there?")
        assert all(map(_silent, (*old, swallowed)))
        time.sleep(max(0.0, over - time.monotonic()))
        caller, target = connect()
        caller.sendall(b"again")
        assert _exactly(target, 5) == b"again"
        assert all(map(_silent, (*old, swallowed)))


def test_a_half_open_connection_swallows_even_the_end(opened: Open) -> None:
    link, connect = opened()
    old_caller, old_target = connect()
    link.half_open()
    caller, target = connect()
    old_caller.close()
    assert _silent(old_target)
    target.sendall(b"new ones work")
    assert _exactly(caller, 13) == b"new ones work"
    old_target.close()
    _until(lambda: link.connections == 1)


def test_what_is_held_comes_later(opened: Open) -> None:
    link, connect = opened()
    caller, target = connect()
    link.hold(0.4)
    start = time.monotonic()
    caller.sendall(b"late")
    assert _exactly(target, 4) == b"late"
    assert 0.4 <= time.monotonic() - start < LATE_S


@pytest.mark.parametrize("direction", ["to-target", "to-caller"])
def test_a_corrupted_stream_differs_in_one_byte(opened: Open, direction: Direction) -> None:
    link, connect = opened()
    sender, receiver = connect() if direction == "to-target" else connect()[::-1]
    sender.sendall(b"before")
    assert _exactly(receiver, 6) == b"before"
    link.corrupt(direction, after_bytes=70_000)
    said = _pattern(200_000)[:200_000]
    sender.sendall(said)
    got = _exactly(receiver, len(said))
    assert [place for place, (was, came) in enumerate(zip(said, got, strict=True)) if was != came] == [70_000]
    sender.sendall(said)
    assert _exactly(receiver, len(said)) == said


def test_a_truncated_connection_ends_in_the_middle_and_others_go_on(opened: Open) -> None:
    link, connect = opened()
    (caller, target), (other_caller, other_target) = connect(), connect()
    link.truncate("to-target", after_bytes=1000)
    caller.sendall(bytes(5000))
    assert _exactly(target, 1000) == bytes(1000)
    assert target.recv(1) == b""
    with suppress(ConnectionResetError):
        assert caller.recv(1) == b""
    other_caller.sendall(b"here")
    assert _exactly(other_target, 4) == b"here"


@pytest.mark.parametrize("closing_end", [0, 1])
def test_a_reset_is_passed_on(opened: Open, closing_end: int) -> None:
    link, connect = opened()
    ends = connect()
    ends[closing_end].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    ends[closing_end].close()
    with pytest.raises(ConnectionResetError):
        ends[1 - closing_end].recv(1)
    _until(lambda: link.connections == 0)


def test_a_target_that_does_not_listen_is_a_reset(opened: Open, listening: socket.socket) -> None:
    link, _ = opened()
    listening.close()
    with pytest.raises(ConnectionResetError), closing(_called(link)) as caller:
        caller.recv(1)


# ---------------------------------------------------------------------- the command


def test_the_command_listens_until_it_is_stopped(listening: socket.socket) -> None:
    target = f"{LOOPBACK}:{listening.getsockname()[1]}"
    with subprocess.Popen(
        [sys.executable, BENCHMARKS / "emulated.py", "--target", target, "--delay-ms", "5", "--cut", "0.5:0.1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as command:
        try:
            assert command.stdout is not None
            word, port = command.stdout.readline().split()
            assert word == "port"
            with closing(socket.create_connection((LOOPBACK, int(port)), LONG_S)) as caller:
                server, _ = listening.accept()
                with closing(server):
                    caller.sendall(b"x")
                    assert server.recv(1) == b"x"
                    with pytest.raises(ConnectionResetError):
                        server.recv(1)
            command.send_signal(signal.SIGTERM)
            _, errors = command.communicate(timeout=LONG_S)
        finally:
            command.kill()
    assert (command.returncode, errors) == (0, "cut for 0.1 s\n")
